"""The formulas, written with tensor methods, and what loads and computes with torch."""
