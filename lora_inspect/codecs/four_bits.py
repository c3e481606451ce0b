"""Numbers of four bits, two in a byte: which of both is the first, and what a code stands for. Tensor methods alone."""

from typing import Any

# E2M1: a sign, two bits of an exponent with the bias 1, one bit of a mantissa. Source: the OCP Microscaling formats.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

_HIGH_FIRST = tuple((byte >> 4, byte & 15) for byte in range(256))
_LOW_FIRST = tuple((byte & 15, byte >> 4) for byte in range(256))


def unpacked(packed: Any, numbers: Any, high_first: bool) -> Any:
    """The numbers (…, 2·n) that the bytes (…, n) stand for, in the element type of the 16 `numbers`, one for each code.

    `high_first` says that the upper four bits of a byte are the first of its two numbers. The type has two or four
    bytes.
    """
    pairs = numbers[packed.new_tensor(_HIGH_FIRST if high_first else _LOW_FIRST).long()]
    # Two numbers at once, as a whole number that is as wide: one look into the table of all bytes finds both.
    wide = pairs.new_empty(0).long() if pairs.element_size() == 4 else pairs.new_empty(0).int()
    found = pairs.view(wide.dtype).flatten().index_select(0, packed.flatten().int())
    return found.view(numbers.dtype).view(*packed.shape[:-1], 2 * packed.shape[-1])
