"""The files of adapters that were made of others: modules, their spelling, metadata, and the writing."""
