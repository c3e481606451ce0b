"""The verbs that make adapters of adapters and models."""
