"""Programs that train adapters, and load them too."""
