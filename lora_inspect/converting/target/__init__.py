"""The form that an output must have: its program, keys, layout and algorithm."""
