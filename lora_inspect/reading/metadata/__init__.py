"""The metadata of files: what trainers and merges wrote there, and what outputs carry."""
