"""The keys of a file: the module and the role of each tensor."""
