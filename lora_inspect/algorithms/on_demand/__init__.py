"""Algorithms that are imported when a key or a config has the name of their file."""
