"""fp8 codes as float32, equal to torch's casts, which take up to ten times as long on a processor.

The bits of a code are moved to where a half-precision number has them; processors widen those by themselves.
"""

import math

import torch

# How far the bits are moved to the left, and which of them stay: the sign is moved with the others and once more alone.
_MOVES = {torch.float8_e4m3fn: (7, ~0x4000), torch.float8_e5m2: (8, ~0)}
# E4M3 has the bias 7 where half precision has 15, and NaN where that has 1.875.
_BIAS, _LARGEST = 2.0**8, 448.0


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
    least, most = into.aminmax()
    if max(-least, most) > _LARGEST:
        into.masked_fill_(into.abs() > _LARGEST, math.nan)
