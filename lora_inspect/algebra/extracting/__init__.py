"""The difference of two models as an adapter: what becomes of each tensor, and its best factors."""
