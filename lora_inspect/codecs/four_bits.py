"""Numbers of four bits, two in a byte, and their scales. Tensor methods only.

Scales may be powers of two, as their exponent in eight bits (E8M0). Matrix units of processors take the scales of
blocks in tiles of 128 rows and 4 blocks.

A matrix of scales is padded to whole tiles, which follow one another row of tiles by row of tiles. In a tile row 32·j +
i has its four scales at 16·i + 4·j: rows 32 apart are neighbours. Sources: the OCP Microscaling formats; cuBLAS, "1D
block scaling factors".
"""

from math import nan
from typing import Any

# E2M1: a sign, two bits of an exponent with the bias 1, one bit of a mantissa. Source: the OCP Microscaling formats.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

_HIGH_FIRST = tuple((byte >> 4, byte & 15) for byte in range(256))
_LOW_FIRST = tuple((byte & 15, byte >> 4) for byte in range(256))


def unpacked(packed: Any, numbers: Any, high_first: bool) -> Any:
    """Return the numbers (…, 2·n) of the packed bytes (…, n), in the element type of `numbers`.

    `numbers` has 16 entries, one for each code, in a type of two or four bytes. `high_first` says that the upper four
    bits of a byte are the first of its two numbers.
    """
    pairs = numbers[packed.new_tensor(_HIGH_FIRST if high_first else _LOW_FIRST).long()]
    # Two numbers at once, as a whole number that is as wide: one look into the table of all bytes finds both.
    wide = pairs.new_empty(0).long() if pairs.element_size() == 4 else pairs.new_empty(0).int()
    found = pairs.view(wide.dtype).flatten().index_select(0, packed.flatten().int())
    return found.view(numbers.dtype).view(*packed.shape[:-1], 2 * packed.shape[-1])


# The one code that stands for no number is the last.
_POWERS = (*(2.0 ** (code - 127) for code in range(255)), nan)


def powers(exponents: Any, like: Any) -> Any:
    """Return 2 ** (e - 127) for the bytes e, in the element type of the tensor `like`; NaN for 255."""
    return like.new_tensor(_POWERS).index_select(0, exponents.flatten().int()).view(exponents.shape)


ROWS, COLUMNS = 128, 4
_LANES = 32


def padded(rows: int, columns: int) -> tuple[int, int]:
    """Return the shape in which the scales of so many rows and blocks in a row are stored."""
    return rows + -rows % ROWS, columns + -columns % COLUMNS


def scales_of_rows(tiles: Any, first: int, stop: int, columns: int) -> Any:
    """Return the scales (stop - first, columns) of the rows from `first` on, from all of them as they are stored."""
    across = (columns + COLUMNS - 1) // COLUMNS
    above, below = first // ROWS, (stop + ROWS - 1) // ROWS
    taken = tiles.reshape(-1, across, _LANES, ROWS // _LANES, COLUMNS)[above:below]
    rows = taken.permute(0, 3, 2, 1, 4).reshape((below - above) * ROWS, across * COLUMNS)
    return rows[first - above * ROWS : stop - above * ROWS, :columns]
