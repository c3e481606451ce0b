"""Scales that are powers of two, as their exponent in eight bits (E8M0). Source: the OCP Microscaling formats."""

from math import nan
from typing import Any

# The one code that stands for no number is the last.
_POWERS = (*(2.0 ** (code - 127) for code in range(255)), nan)


def powers(exponents: Any, like: Any) -> Any:
    """2 ** (e - 127) for the bytes e, in the element type of the tensor `like`; NaN for 255."""
    return like.new_tensor(_POWERS).index_select(0, exponents.flatten().int()).view(exponents.shape)
