"""Linear algebra of changes as thin factors: sums, singular values, ranks, and the best factors of a matrix."""
