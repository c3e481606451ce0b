"""Additions to single entries of a weight, and rows or columns times numbers. Tensor methods only."""

from dataclasses import dataclass, replace
from typing import Any

from lora_inspect.maths.change import Change


@dataclass(frozen=True, slots=True)
class Scattered(Change):
    """W + multiplier · scale · `values` (count,) at the entries (`rows`, `columns`), each (count,), of W.

    Columns may go on into the next rows, so that entries counted from the first one of W have the rows 0. Several
    values at one entry add up.
    """

    rows: Any
    columns: Any
    values: Any
    scale: float
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Add the values with entries in the rows."""
        entries = (self.rows - first) * rows.shape[1] + self.columns
        inside = (entries >= 0) & (entries < rows.numel())
        rows.view(-1).index_add_(0, entries[inside], self.values[inside] * (self.scale * multiplier))


ROWS, COLUMNS = 0, 1


@dataclass(frozen=True, slots=True)
class Gains(Change):
    """W times 1 + multiplier · (gains - 1), with one of the gains (n,) for each row, or for each input along `axis`.

    All columns of an input share its gain; a kernel has several.
    """

    gains: Any
    axis: int
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Multiply the rows."""
        # A multiplier of 1 leaves the gains as they are, however small they are beside 1.
        gains = (1 - multiplier) + multiplier * self.gains
        if self.axis == ROWS:
            rows.mul_(gains[first : first + rows.shape[0]].unsqueeze(1))
        else:
            rows.mul_(gains.repeat_interleave(rows.shape[1] // gains.shape[0]))

    def transposed(self) -> Change:
        """Return the gains of the transposed weight: rows become inputs, and inputs rows."""
        return replace(self, axis=1 - self.axis)
