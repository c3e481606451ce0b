"""The reading of a file: the meaning of its tensors, with evidence. Standard library only."""
