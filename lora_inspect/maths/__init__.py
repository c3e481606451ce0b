"""The formulas, written with tensor methods, and the modules that load and compute with torch."""
