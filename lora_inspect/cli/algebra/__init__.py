"""The verbs of adapter algebra on the command line, a file each."""
