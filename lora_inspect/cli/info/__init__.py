"""The command `info`: its options, the choice of files, and the screens of one file and of several."""
