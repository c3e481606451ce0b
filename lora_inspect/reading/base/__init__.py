"""The names, the quantisation and the configuration of base models."""
