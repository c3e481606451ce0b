"""Scales that are powers of two, as their exponent in eight bits (E8M0). Source: the OCP Microscaling formats."""

from typing import Any

BIAS = 127
# The one code that stands for no number.
NAN = 255


def powers(exponents: Any, dtype: Any) -> Any:
    """2 ** (e - 127) for the bytes e, in the element type `dtype`; NaN for 255."""
    import torch

    every = torch.arange(256, dtype=torch.float64).sub_(BIAS).exp2_()
    every[NAN] = torch.nan
    return every.to(dtype).index_select(0, exponents.flatten().int()).view(exponents.shape)
