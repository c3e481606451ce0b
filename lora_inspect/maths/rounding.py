"""Stochastic rounding: each number goes to one of the two of a type beside it, the nearer the likelier.

The mean of what is written is the number itself, so that changes which are smaller than the distance between two
numbers are kept on average, where rounding to the nearest loses them; the price is noise. What is drawn for an entry
depends on the seed, the name of its weight and its place there alone: blocks may come in any size and order.
"""

from functools import lru_cache, partial
from hashlib import sha256

import torch
from torch import Tensor

from lora_inspect.maths.spacing import spacing

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
    """Rounds the entries of one weight; the same `seed` and `name` round them in the same way."""

    def __init__(self, seed: int, name: str) -> None:
        digest = sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
        self._keys = tuple(_signed(int.from_bytes(digest[at : at + 4], "little")) for at in (0, 4))

    def rounded(self, values: Tensor, dtype: str, first: int) -> Tensor:
        """Numbers of `dtype`, in float32, for values of which the first is the entry `first` of the weight.

        Contiguous float32 values are changed in place. Those on the grid stay as they are, and a block that holds
        anything that is not finite does too. I8 are the whole numbers.
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
        """16 random bits for each entry as whole numbers with a sign; two entries share what is hashed."""
        begin, end = first // 2, (first + count + 1) // 2
        hashed = (_counted(_TOGETHER // 2 + 1)[: end - begin] + _signed(begin)).bitwise_xor_(self._keys[0])
        shifted = torch.empty_like(hashed)
        for (shift, factor), key in zip(_STEPS, (self._keys[1], 0, 0, 0), strict=True):
            torch.bitwise_right_shift(hashed, shift, out=shifted)
            hashed.bitwise_xor_(shifted.bitwise_and_((1 << (32 - shift)) - 1))
            hashed.mul_(factor).add_(key)
        return hashed.view(torch.int16)[first % 2 :][:count]


def _round_to_bfloat16(values: Tensor, drawn: Tensor) -> None:
    """Adds what was drawn to the bits that bfloat16 has not, and drops them."""
    bits = values.view(torch.int32)
    bits.add_(drawn).add_(1 << (_BITS_BELOW - 1)).bitwise_and_(-1 << _BITS_BELOW)


def _round(dtype: str, values: Tensor, drawn: Tensor) -> None:
    """Adds a part of the distance between two numbers, and goes to the next one below."""
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
    """The number of 32 bits, the highest of which is a sign."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
