"""The tensors and configs of an output, its file, and the proof that it says the same."""
