"""Sums, norms, angles and trims of changes as products of thin factors, without the matrix of a weight."""
