"""Reading input files and writing outputs, as bytes. Standard library only."""
