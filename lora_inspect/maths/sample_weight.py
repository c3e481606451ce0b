"""A weight to try changes on that depend on one: any size, read in any blocks, and never held whole."""

from collections.abc import Iterator

import torch

# A prime: rows begin at different numbers until there are as many rows as this.
_ROWS, _STEP = 4099, 1021
_SEED = 0


class SampleWeight:
    """(rows, columns) in float64, of zeros, or of numbers of which rows are pieces of one row of normal ones."""

    def __init__(self, rows: int, columns: int, is_zero: bool, elements: int = 1 << 20) -> None:
        self._rows, self._columns, self._elements = rows, columns, elements
        count = columns + _ROWS
        generator = torch.Generator(device="cpu").manual_seed(_SEED)
        self._numbers: torch.Tensor | None = None
        if not is_zero:
            self._numbers = torch.randn(count, generator=generator, dtype=torch.float64, device="cpu")

    def read(self, together: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, new rows) for all of it, in blocks of a multiple of `together` rows; 0 is for all at once."""
        group = together or max(self._rows, 1)
        count = max(group, self._elements // max(self._columns, 1) // group * group)
        for first in range(0, self._rows, count):
            yield first, self._block(first, min(first + count, self._rows))

    def _block(self, first: int, last: int) -> torch.Tensor:
        if self._numbers is None:
            return torch.zeros(last - first, self._columns, dtype=torch.float64, device="cpu")
        starts = torch.arange(first, last, dtype=torch.long, device="cpu") * _STEP % _ROWS
        return self._numbers.unfold(0, self._columns, 1)[starts]
