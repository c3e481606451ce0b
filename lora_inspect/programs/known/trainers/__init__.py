"""Programs that train adapters and also load them."""
