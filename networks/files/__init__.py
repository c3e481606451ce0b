"""How a network's weights become a file, and a file its weights."""
