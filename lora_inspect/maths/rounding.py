"""Stochastic rounding: each number goes to one of its two neighbours in a type, the nearer the likelier.

The mean of the written numbers is the number itself, so that changes which are smaller than the distance between two
numbers are kept on average, while rounding to the nearest loses them; the price is noise. The draw for an entry depends
only on the seed, the name of its weight and its place there: blocks may come in any size and order.

The file also gives the distances between numbers of an element type, the type of a tensor's numbers, and the numbers
that a known change may have turned into a rounded one.
"""

from functools import lru_cache, partial
from hashlib import sha256

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import GRIDS
from lora_inspect.maths.tensors import STORED_DTYPES

# What values of a finer type are looked for, the coarsest first: a merge in half precision is often saved as F32.
_COARSER = ("BF16", "F16", "F32")
_EXPONENTS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}


def spacing(values: Tensor, dtype: str) -> Tensor:
    """Return the distance between the numbers of `dtype` at each of the finite float32 or float64 `values`."""
    whole, mask = _EXPONENTS[values.dtype]
    grid = GRIDS[dtype]
    powers = (values.contiguous().view(whole) & mask).view(values.dtype)
    return powers.clamp_(min=2.0**grid.least).mul_(2.0**-grid.bits)


def rounded(values: Tensor, dtype: str) -> Tensor:
    """Return the values in `dtype`; numbers beyond its range become the largest ones."""
    if dtype == "I8":
        return values.round().clamp_(-128, 127)
    stored = STORED_DTYPES[dtype]
    largest = torch.finfo(stored).max
    return values.clamp(-largest, largest).to(stored).to(values.dtype)


def grid_of(values: Tensor, dtype: str) -> str:
    """Return the coarsest type that holds all of the finite `values`, which are stored in `dtype`."""
    for coarser in _COARSER:
        if GRIDS[coarser].bits >= GRIDS[dtype].bits:
            break
        # Most tensors show in their first row that they need their own type.
        if all(torch.equal(rounded(part, coarser), part) for part in (values[:1], values)):
            return coarser
    return dtype


# Of each draw of 16 bits the grids take so many, which float32 still tells apart at their largest numbers, and a half
# of the last one: codes times a scale are not quite on the grid, and must stay where they are.
_DRAWN = {"F16": (13, 0.0), "F8_E4M3": (16, 0.5), "F8_E5M2": (16, 0.5), "I8": (15, 0.5)}
# Codes end where others begin that are no numbers; numbers a little beyond have the last one as their nearest.
_ENDS = {"F8_E4M3": (-448.0, 448.0), "F8_E5M2": (-57344.0, 57344.0), "I8": (-128.0, 127.0)}
# The types that numbers can be rounded to in this way: what has more bits than that rounds too finely to care.
ROUNDED = frozenset({"BF16", *_DRAWN})
# An integer hash: shifts and odd factors in turn, which each are one to one. The numbers are those of triple32, which
# C. Wellons searched for the least bias and gave to the public domain.
_STEPS = ((17, -0x12A52B45), (11, -0x53B3E4AF), (15, 0x31848BAB), (14, 1))
# So many entries are rounded at a time: what is needed on the way stays in a cache.
_TOGETHER = 1 << 16
_BITS_BELOW = 16  # of a float32, beneath those of bfloat16


class StochasticRounding:
    """The rounding of the entries of one weight; the same `seed` and `name` round them in the same way."""

    def __init__(self, seed: int, name: str) -> None:
        digest = sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
        self._keys = tuple(_signed(int.from_bytes(digest[at : at + 4], "little")) for at in (0, 4))

    def rounded(self, values: Tensor, dtype: str, first: int) -> Tensor:
        """Return numbers of `dtype`, in float32, for values that begin at the entry `first` of the weight.

        Contiguous float32 values are changed in place. Numbers on the grid stay unchanged, and so does a block with NaN
        or infinity. I8 are the whole numbers.
        """
        values = values.float().contiguous()
        if dtype not in ROUNDED or not values.numel() or not _are_finite(values):
            return values
        step = _round_to_bfloat16 if dtype == "BF16" else partial(_round, dtype)
        flat = values.view(-1)
        for begin in range(0, len(flat), _TOGETHER):
            part = flat[begin : begin + _TOGETHER]
            step(part, self._drawn(first + begin, len(part)))
        return values

    def _drawn(self, first: int, count: int) -> Tensor:
        """Return 16 random bits for each entry as signed whole numbers; two entries share one hash."""
        begin, end = first // 2, (first + count + 1) // 2
        hashed = (_counted(_TOGETHER // 2 + 1)[: end - begin] + _signed(begin)).bitwise_xor_(self._keys[0])
        shifted = torch.empty_like(hashed)
        for (shift, factor), key in zip(_STEPS, (self._keys[1], 0, 0, 0), strict=True):
            torch.bitwise_right_shift(hashed, shift, out=shifted)
            hashed.bitwise_xor_(shifted.bitwise_and_((1 << (32 - shift)) - 1))
            hashed.mul_(factor).add_(key)
        return hashed.view(torch.int16)[first % 2 :][:count]


def _round_to_bfloat16(values: Tensor, drawn: Tensor) -> None:
    """Add the drawn bits to the low bits that bfloat16 lacks, and drop these."""
    bits = values.view(torch.int32)
    bits.add_(drawn).add_(1 << (_BITS_BELOW - 1)).bitwise_and_(-1 << _BITS_BELOW)


def _round(dtype: str, values: Tensor, drawn: Tensor) -> None:
    """Add a part of the distance between two numbers, and go to the next one below."""
    count, half = _DRAWN[dtype]
    part = (drawn >> (16 - count)).to(torch.float32).add_(2.0 ** (count - 1) + half).mul_(2.0**-count)
    if dtype == "I8":
        values.add_(part).floor_()
    else:
        unit = spacing(values, dtype)
        values.div_(unit).add_(part).floor_().mul_(unit)
    if dtype in _ENDS:
        values.clamp_(*_ENDS[dtype])


def _are_finite(values: Tensor) -> bool:
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


@lru_cache(1)
def _counted(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device="cpu")


def _signed(number: int) -> int:
    """Return the number as 32 bits with the highest as the sign."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


# The whole numbers that have as many bits as a type, and the lowest of them.
_BITS = {2: (torch.int16, -(1 << 15)), 4: (torch.int32, -(1 << 31)), 8: (torch.int64, -(1 << 63))}
_LARGEST = torch.finfo(torch.float64).max


class Preimages(NamedTuple):
    """The numbers of a type within intervals.

    `values` are the nearest to their middles. `proved` is True if there is no other one, `impossible` if there is none
    at all. A zero has no sign here.
    """

    values: Tensor
    proved: Tensor
    impossible: Tensor


def preimages(low: Tensor, high: Tensor, dtype: torch.dtype) -> Preimages:
    """Return the numbers of a type from `low` to `high`, which are in float64 and within it."""
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
    """Return the least and the greatest number, in float64, that rounds to each; both may also round away from it."""
    own, at = rounded.double(), _ordered(rounded)
    before, behind = (_number(at + step, rounded.dtype).double() for step in (-1, 1))
    if not (before.sum() + behind.sum()).isfinite():
        # Beyond the largest number of the type all is infinite from half a step on.
        before = torch.where(before.isfinite(), before, 2 * own - behind)
        behind = torch.where(behind.isfinite(), behind, 2 * own - before)
    return before.add_(own).div_(2), behind.add_(own).div_(2)


def _ordered(numbers: Tensor) -> Tensor:
    """Return the numbers as whole ones in their order, one for each; both zeros are 0."""
    whole, lowest = _BITS[numbers.element_size()]
    bits = numbers.contiguous().view(whole)
    # All ones where there is a sign: what is taken apart by that and less than it is the negative number.
    sign = bits >> (8 * numbers.element_size() - 1)
    return bits.bitwise_and(~lowest).bitwise_xor_(sign).sub_(sign)


def _number(ordered: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the inverse of `_ordered`."""
    _, lowest = _BITS[ordered.element_size()]
    sign = ordered >> (8 * ordered.element_size() - 1)
    return (ordered ^ sign).sub_(sign).bitwise_or_(sign.bitwise_and_(lowest)).view(dtype)
