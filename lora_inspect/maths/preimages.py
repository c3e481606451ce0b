"""Which numbers of a type may have become a rounded one when a known change was added to them."""

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple

# The whole numbers that have as many bits as a type, and the lowest of them.
_BITS = {2: (torch.int16, -(1 << 15)), 4: (torch.int32, -(1 << 31)), 8: (torch.int64, -(1 << 63))}
_LARGEST = torch.finfo(torch.float64).max


class Preimages(NamedTuple):
    """The numbers of a type within intervals.

    `values` are the nearest to their middles. Where `proved` there is no other one; where `impossible` there is none
    at all. A zero has no sign here.
    """

    values: Tensor
    proved: Tensor
    impossible: Tensor


def preimages(low: Tensor, high: Tensor, dtype: torch.dtype) -> Preimages:
    """The numbers of a type from `low` to `high`, which are in float64 and within it."""
    # What is infinite lies in no interval.
    most, least = high.clamp(max=_LARGEST), low.clamp(min=-_LARGEST)

    def is_within(at: Tensor) -> Tensor:
        number = _number(at, dtype).double()
        return (number >= least).logical_and_(number <= most)

    # The middle may be rounded twice, and so to the number next to the nearest one.
    nearest = _ordered((low + high).div_(2).to(dtype))
    own, before, behind = is_within(nearest), is_within(nearest - 1), is_within(nearest + 1)
    others = before | behind
    impossible = (own | others).logical_not_()
    # Mostly the nearest number is within.
    if (~own).logical_and_(others).any():
        nearest = nearest + ((behind & ~own).to(nearest.dtype) - (before & ~own & ~behind).to(nearest.dtype))
    return Preimages(_number(nearest, dtype), own.logical_and_(others.logical_not_()), impossible)


def rounding_interval(rounded: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest number, in float64, that is rounded to each; both may also be rounded away from it."""
    own, at = rounded.double(), _ordered(rounded)
    before, behind = (_number(at + step, rounded.dtype).double() for step in (-1, 1))
    if not (before.sum() + behind.sum()).isfinite():
        # Beyond the largest number of the type all is infinite from half a step on.
        before = torch.where(before.isfinite(), before, 2 * own - behind)
        behind = torch.where(behind.isfinite(), behind, 2 * own - before)
    return before.add_(own).div_(2), behind.add_(own).div_(2)


def _ordered(numbers: Tensor) -> Tensor:
    """The numbers as whole ones in their order, one for each; both zeros are 0."""
    whole, lowest = _BITS[numbers.element_size()]
    bits = numbers.contiguous().view(whole)
    # All ones where there is a sign: what is taken apart by that and less than it is the negative number.
    sign = bits >> (8 * numbers.element_size() - 1)
    return bits.bitwise_and(~lowest).bitwise_xor_(sign).sub_(sign)


def _number(ordered: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse."""
    _, lowest = _BITS[ordered.element_size()]
    sign = ordered >> (8 * ordered.element_size() - 1)
    return (ordered ^ sign).sub_(sign).bitwise_or_(sign.bitwise_and_(lowest)).view(dtype)
