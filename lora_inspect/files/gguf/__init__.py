"""The format of GGUF: its header, its tensors, and writing it."""
