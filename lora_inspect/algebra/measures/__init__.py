"""Measures of changes: their sizes, how far they are from each other, and how they add up."""
