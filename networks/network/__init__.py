"""The construction of a network from a trainer's arguments."""
