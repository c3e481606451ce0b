"""Which entries of a weight share a scale: all of them, a row, or a block of neighbouring rows and columns.

Tensor methods alone. A weight is a matrix (out, columns) here, whatever its kernel; scales are (rows, columns) of
blocks, of which those at the lower and the right edge may be smaller.
"""

from collections.abc import Iterator
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple


class Blocks(NamedTuple):
    """The size of a block."""

    rows: int
    columns: int

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """How many blocks a matrix has below and beside each other."""
        return -(-rows // self.rows), -(-columns // self.columns)

    def beside(self, rows: Any) -> Iterator[tuple[Any, slice]]:
        """Views (count, blocks, columns of one) of some rows, and which of the blocks beside each other each has."""
        whole = rows.shape[1] // self.columns
        if whole:
            yield rows[:, : whole * self.columns].unflatten(1, (whole, self.columns)), slice(0, whole)
        if whole * self.columns < rows.shape[1]:
            yield rows[:, whole * self.columns :].unsqueeze(1), slice(whole, None)

    def below(self, first: int, count: int) -> list[slice]:
        """Which of so many rows, the first of which has the number `first`, lie in each row of blocks."""
        cuts = range(first - first % self.rows, first + count, self.rows)
        return [slice(max(start - first, 0), min(start + self.rows - first, count)) for start in cuts]

    def each(self, scale: Any, first: int, count: int) -> Any:
        """The scales of so many rows, (count or 1, blocks), from those of the rows of blocks in which they lie."""
        if self.rows == 1 or scale.shape[0] == 1:
            return scale
        return scale.repeat_interleave(self.rows, 0)[first % self.rows :][:count]


def own_scales(scale: Any, blocks: Blocks, first: int, count: int) -> Any:
    """Those scales of a weight that are of the blocks in which so many rows from `first` on lie."""
    return scale[first // blocks.rows : -(-(first + count) // blocks.rows)]


def multiply(rows: Any, scale: Any, blocks: Blocks, first: int) -> None:
    """Makes q · scale of some rows of q, in place, with the scales of their own blocks."""
    each = blocks.each(scale, first, rows.shape[0]).unsqueeze(-1)
    for part, at in blocks.beside(rows):
        part.mul_(each[:, at])


def divide(rows: Any, scale: Any, blocks: Blocks, first: int) -> None:
    """Makes W / scale of some rows of W, in place, with the scales of their own blocks."""
    each = blocks.each(scale, first, rows.shape[0]).unsqueeze(-1)
    for part, at in blocks.beside(rows):
        part.div_(each[:, at])


def extremes(rows: Any, blocks: Blocks, first: int) -> tuple[Any, Any]:
    """The largest and the smallest number of some rows in each of their blocks, (rows of blocks, blocks)."""
    largest = rows.new_empty(rows.shape[0], -(-rows.shape[1] // blocks.columns))
    smallest = rows.new_empty(largest.shape)
    for part, at in blocks.beside(rows):
        largest[:, at], smallest[:, at] = part.amax(-1), part.amin(-1)
    if blocks.rows == 1:
        return largest, smallest
    below = blocks.below(first, rows.shape[0])
    most, least = largest.new_empty(len(below), largest.shape[1]), smallest.new_empty(len(below), largest.shape[1])
    for number, own in enumerate(below):
        most[number], least[number] = largest[own].amax(0), smallest[own].amin(0)
    return most, least
