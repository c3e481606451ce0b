"""Fused products, and the base's weights as numbers."""
