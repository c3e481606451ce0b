"""Which key of a file is which tensor of which module."""
