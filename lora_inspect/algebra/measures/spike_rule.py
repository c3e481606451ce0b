"""The rule for a spike: one direction of a change far above the next one, and above those of like layers."""

# A spike's first singular value is above so many times its second, and so many times the median of its kind.
SPIKE = 5.0
# So many modules of a kind have a median to compare with; fewer are compared with all modules.
ENOUGH = 3


def is_spike(first: float, second: float, middle: float) -> bool:
    """Return True for the first singular value of a spike; `middle` is the median of its kind."""
    return first > SPIKE * second and first > SPIKE * middle
