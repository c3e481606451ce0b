"""The lints of `check` beyond the reading: of the header, the metadata, the modules and the numbers."""
