"""From a trainer's arguments to a network."""
