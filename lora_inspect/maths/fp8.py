"""fp8 codes as float32, equal to torch's casts, which take up to ten times as long on a processor; and the way back.

The bits of a code are moved to where a half-precision number has them; processors widen those by themselves.
"""

import math

import torch

# How far the bits are moved to the left, and which of them stay: the sign is moved with the others and once more alone.
_MOVES = {torch.float8_e4m3fn: (7, ~0x4000), torch.float8_e5m2: (8, ~0)}
# E4M3 has the bias 7 where half precision has 15, and NaN where that has 1.875: in all bits but the sign.
_BIAS, _NAN = 2.0**8, 0x7F


# The types whose numbers these are.
FP8_DTYPES = frozenset(_MOVES)


def widen(codes: torch.Tensor, into: torch.Tensor) -> None:
    """Writes the numbers that the fp8 `codes` stand for `into` a float32 tensor of their shape."""
    distance, kept = _MOVES[codes.dtype]
    bits = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(distance).bitwise_and_(kept)
    into.copy_(bits.view(torch.float16))
    if codes.dtype == torch.float8_e5m2:
        return
    into.mul_(_BIAS)
    sizes = codes.view(torch.uint8).bitwise_and(_NAN)
    if codes.numel() and sizes.max() == _NAN:
        into.masked_fill_(sizes == _NAN, math.nan)


def narrow(numbers: torch.Tensor, into: torch.Tensor) -> None:
    """Writes the nearest codes of `numbers`, to even where two are as near, `into` an fp8 tensor of their shape.

    What is larger than the largest code becomes that; the numbers are changed. NaN stays so.
    """
    largest = torch.finfo(into.dtype).max
    into.copy_(numbers.clamp_(-largest, largest))
