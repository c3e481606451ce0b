"""Adapters of mixtures of experts."""
