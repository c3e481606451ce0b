"""Programs that serve language models."""
