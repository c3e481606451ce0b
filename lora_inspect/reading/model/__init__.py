"""The nouns of reading: contributions and modules, the evidence for each value, and the user's settings."""
