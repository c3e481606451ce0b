"""Single entries of a weight that are added to. Tensor methods alone."""

from dataclasses import dataclass
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
        """Adds the values whose entries are in the rows."""
        entries = (self.rows - first) * rows.shape[1] + self.columns
        inside = (entries >= 0) & (entries < rows.numel())
        rows.view(-1).index_add_(0, entries[inside], self.values[inside] * (self.scale * multiplier))
