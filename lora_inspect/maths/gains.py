"""Rows or columns of a weight times numbers of their own. Tensor methods alone."""

from dataclasses import dataclass, replace
from typing import Any

from lora_inspect.maths.change import Change

ROWS, COLUMNS = 0, 1


@dataclass(frozen=True, slots=True)
class Gains(Change):
    """W times 1 + multiplier · (gains - 1), with one of the gains (n,) for each row, or for each input along `axis`.

    The columns of an input, of which a kernel has several, share its gain.
    """

    gains: Any
    axis: int
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Multiplies the rows."""
        # A multiplier of 1 leaves the gains as they are, however small they are beside 1.
        gains = (1 - multiplier) + multiplier * self.gains
        if self.axis == ROWS:
            rows.mul_(gains[first : first + rows.shape[0]].unsqueeze(1))
        else:
            rows.mul_(gains.repeat_interleave(rows.shape[1] // gains.shape[0]))

    def transposed(self) -> Change:
        """Rows are inputs, and inputs rows."""
        return replace(self, axis=1 - self.axis)
