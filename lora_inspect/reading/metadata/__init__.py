"""The metadata of files: records of trainers and merges, and the metadata that outputs carry."""
