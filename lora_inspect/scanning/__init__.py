"""Short accounts of the adapters in a folder, read in parallel, selected and sorted."""
