"""Which entries of a weight share a scale: all of them, a row, or a block of neighbouring rows and columns.

Tensor methods alone. A weight is a matrix (out, columns) here, whatever its kernel; scales are (rows, columns) of
blocks, of which those at the lower and the right edge may be smaller.
"""

from collections.abc import Iterator
from typing import Any

from lora_inspect.records import NamedTuple


class Blocks(NamedTuple):
    """The size of a block."""

    rows: int
    columns: int

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """How many blocks a matrix has below and beside each other."""
        return -(-rows // self.rows), -(-columns // self.columns)

    def parts(self, rows: Any, scale: Any, first: int) -> Iterator[tuple[Any, Any]]:
        """Views of some rows (count, columns), the first of which has the number `first`, each with its scales.

        A view is (count, blocks, columns of one); its scales (count or 1, blocks, 1) are multiplied or compared as
        they are.
        """
        own = self._own(scale, first, rows.shape[0]).unsqueeze(-1)
        whole = rows.shape[1] // self.columns
        if whole:
            end = whole * self.columns
            yield rows[:, :end].unflatten(1, (whole, self.columns)), own[:, :whole]
        if whole < own.shape[1]:
            yield rows[:, whole * self.columns :].unsqueeze(1), own[:, whole:]

    def _own(self, scale: Any, first: int, count: int) -> Any:
        """The scales of each of the rows."""
        if scale.shape[0] == 1:
            return scale
        start = first // self.rows
        own = scale[start : -(-(first + count) // self.rows)]
        if self.rows > 1:
            own = own.repeat_interleave(self.rows, 0)[first - start * self.rows :][:count]
        return own


def multiply(rows: Any, scale: Any, blocks: Blocks, first: int) -> None:
    """Makes q · scale of some rows of q, in place; the first of them has the number `first`."""
    for part, own in blocks.parts(rows, scale, first):
        part.mul_(own)
