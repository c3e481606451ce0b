"""What `check` looks for beyond the reading: lints of the header, the metadata, the modules and the numbers."""
