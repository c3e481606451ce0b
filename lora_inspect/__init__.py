"""Says what a LoRA-family checkpoint means, and merges and converts it without losing anything silently."""

__version__ = "0.1.0"
