"""What the tensors of a file mean, and on which evidence. Standard library only."""
