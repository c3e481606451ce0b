"""The difference of two models as an adapter: the use of each tensor, and its best factors."""
