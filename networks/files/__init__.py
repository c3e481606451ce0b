"""Conversion between a network's weights and files."""
