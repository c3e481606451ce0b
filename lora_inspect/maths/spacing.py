"""How far apart the numbers of an element type lie, and of which type the numbers of a tensor are."""

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.tensors import STORED_DTYPES


class Grid(NamedTuple):
    """The numbers of a type: bits of the mantissa behind the point, and the exponent of the least normal number.

    Whole numbers are as far apart as the numbers below that exponent are.
    """

    bits: int
    least: int


GRIDS = {
    "F64": Grid(52, -1022),
    "F32": Grid(23, -126),
    "F16": Grid(10, -14),
    "BF16": Grid(7, -126),
    "F8_E4M3": Grid(3, -6),
    "F8_E5M2": Grid(2, -14),
    "I8": Grid(7, 7),
}
# The variance of what rounding adds to a number, in squares of the distance between two numbers: that of a number
# anywhere between them.
ROUNDING = 1 / 12
# What values of a finer type are looked for, the coarsest first: a merge in half precision is often saved as F32.
_COARSER = ("BF16", "F16", "F32")
_EXPONENTS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}


def spacing(values: Tensor, dtype: str) -> Tensor:
    """The distance between the numbers of `dtype` at each of the finite `values`, which are float32 or float64."""
    whole, mask = _EXPONENTS[values.dtype]
    grid = GRIDS[dtype]
    powers = (values.contiguous().view(whole) & mask).view(values.dtype)
    return powers.clamp_(min=2.0**grid.least).mul_(2.0**-grid.bits)


def rounded(values: Tensor, dtype: str) -> Tensor:
    """The values in `dtype`, which none of them leaves: what is too large becomes the largest number."""
    if dtype == "I8":
        return values.round().clamp_(-128, 127)
    stored = STORED_DTYPES[dtype]
    largest = torch.finfo(stored).max
    return values.clamp(-largest, largest).to(stored).to(values.dtype)


def grid_of(values: Tensor, dtype: str) -> str:
    """The coarsest type that holds all of the finite `values`, which are stored in `dtype`."""
    for coarser in _COARSER:
        if GRIDS[coarser].bits >= GRIDS[dtype].bits:
            break
        # Most tensors show in their first row that they need their own type.
        if all(torch.equal(rounded(part, coarser), part) for part in (values[:1], values)):
            return coarser
    return dtype
