"""The layers that a network adds to a model."""
