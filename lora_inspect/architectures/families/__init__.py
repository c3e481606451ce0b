"""One file for each model family, with a record named `ARCHITECTURE`. The registry finds them by themselves."""
