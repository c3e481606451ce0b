"""Numbers of four bits, two in a byte: which of both is the first, and what a code stands for. Tensor methods alone."""

from typing import Any

# E2M1: a sign, two bits of an exponent with the bias 1, one bit of a mantissa. Source: the OCP Microscaling formats.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

# A whole number as wide as two numbers of so many bytes: one look into the table of all bytes finds both.
_AS_WIDE_AS_TWO = {4: "int64", 2: "int32"}


def unpacked(packed: Any, numbers: Any, high_first: bool) -> Any:
    """The numbers (…, 2·n) that the bytes (…, n) stand for, in the element type of the 16 `numbers`, one for each code.

    `high_first` says that the upper four bits of a byte are the first of its two numbers.
    """
    import torch

    byte = torch.arange(256)
    halves = (byte >> 4, byte & 15) if high_first else (byte & 15, byte >> 4)
    of_bytes = numbers[torch.stack(halves, -1)]
    pairs = of_bytes.view(getattr(torch, _AS_WIDE_AS_TWO[numbers.element_size()])).flatten()
    found = pairs.index_select(0, packed.flatten().int()).view(numbers.dtype)
    return found.view(*packed.shape[:-1], 2 * packed.shape[-1])
