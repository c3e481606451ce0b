"""Which numbers of a type may have become a rounded one when a known change was added to them."""

import torch
from torch import Tensor

from lora_inspect.records import NamedTuple

# The whole numbers that have as many bits as a type, and the lowest of them.
_BITS = {2: (torch.int16, -(1 << 15)), 4: (torch.int32, -(1 << 31)), 8: (torch.int64, -(1 << 63))}
# How far from the middle numbers of the type are looked at.
_FAR = 2


class Preimages(NamedTuple):
    """What stood in the place of each rounded number.

    `values` are the most likely numbers, in the type. Where `proved`, no other number of the type is possible; where
    `impossible`, none at all is. A zero has no sign here.
    """

    values: Tensor
    proved: Tensor
    impossible: Tensor


def preimages(rounded: Tensor, change: Tensor, slack: Tensor) -> Preimages:
    """The numbers W of the type of `rounded` for which W + `change`, off by `slack` at most, is rounded to it.

    `change` and `slack` are in float64. Whichever way a tie was rounded is possible.
    """
    low, high = rounding_interval(rounded)
    low, high = low - slack - change, high + slack - change
    middle = _ordered(((low + high) / 2).to(rounded.dtype))
    found = torch.zeros(rounded.shape, dtype=torch.int8)
    proved = torch.zeros(rounded.shape, dtype=torch.bool)
    values = middle.clone()
    # The nearest first, so that it is the one that stands.
    for step in sorted(range(-_FAR, _FAR + 1), key=abs):
        number = _number(middle + step, rounded.dtype).double()
        is_possible = (number >= low) & (number <= high) & number.isfinite()
        values = torch.where(is_possible & (found == 0), middle + step, values)
        found += is_possible
        proved = proved | (is_possible & (abs(step) < _FAR))
    return Preimages(_number(values, rounded.dtype), proved & (found == 1), found == 0)


def rounding_interval(rounded: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest number, in float64, that is rounded to each; both may also be rounded away from it."""
    own, at = rounded.double(), _ordered(rounded)
    before, behind = (_number(at + step, rounded.dtype).double() for step in (-1, 1))
    # Beyond the largest number of the type all is infinite from half a step on.
    before = torch.where(before.isfinite(), before, 2 * own - behind)
    behind = torch.where(behind.isfinite(), behind, 2 * own - before)
    return (before + own) / 2, (own + behind) / 2


def _ordered(numbers: Tensor) -> Tensor:
    """The numbers as whole ones in their order, one for each; both zeros are 0."""
    whole, lowest = _BITS[numbers.element_size()]
    bits = numbers.contiguous().view(whole)
    return torch.where(bits < 0, lowest - bits, bits)


def _number(ordered: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse."""
    _, lowest = _BITS[ordered.element_size()]
    return torch.where(ordered < 0, lowest - ordered, ordered).view(dtype)
