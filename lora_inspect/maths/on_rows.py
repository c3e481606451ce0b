"""Changes of a part of a weight: of some of its rows or columns, or of one of several weights below each other.

Tensor methods alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from lora_inspect.maths.change import Blocks, Change, LowRank, Transposed, holds_all


@dataclass(frozen=True, slots=True)
class OnRows(Change):
    """`change` on some rows of another weight: each of the `runs` (start, stop, source) are its rows from `source` on.

    Serves a slice of a fused weight, the part of a fused adapter that one of several weights gets, and rows in another
    order. A change with groups of rows, or one that needs all of them at once, has to find them in one run.
    """

    change: Change
    runs: tuple[tuple[int, int, int], ...]

    @property
    def together(self) -> int:
        """That of the change, where its groups begin and end at multiples of it in the other weight as well."""
        own = self.change.together
        return own if own and not any(edge % own for run in self.runs for edge in run) else 0

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """The change settles on its own rows."""
        return replace(self, change=self.change.settled(partial(self._own_blocks, blocks), multiplier))

    @property
    def holds_all(self) -> bool:
        """As the change."""
        return holds_all(self.change)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Folds into those of the rows that are its own."""
        for own_first, own in self._own(first, rows):
            self.change.fold(own, own_first, multiplier)

    def transposed(self) -> Change:
        """A product of factors on columns; any other change of the whole weight, turned round."""
        if not isinstance(self.change, LowRank) or self.change.together != 1:
            return Transposed(self)
        columns = [row for start, stop, _ in self.runs for row in range(start, stop)]
        sources = [source + row - start for start, stop, source in self.runs for row in range(start, stop)]
        own = replace(self.change, up=self.change.up[_evenly(sources)])
        return OnColumns(own.transposed(), _evenly(columns))

    def _own_blocks(self, blocks: Blocks) -> Iterator[tuple[int, Any]]:
        for first, rows in blocks():
            yield from self._own(first, rows)

    def _own(self, first: int, rows: Any) -> Iterator[tuple[int, Any]]:
        last = first + rows.shape[0]
        for start, stop, source in self.runs:
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                yield begin - start + source, rows[begin - first : end - first]


def _evenly(numbers: list[int]) -> slice | list[int]:
    """The numbers as an index, which takes no copy where all of them lie equally far apart."""
    steps = {after - before for before, after in pairwise(numbers)} or {1}
    (step,) = steps if len(steps) == 1 else (0,)
    return slice(numbers[0], numbers[-1] + 1, step) if step > 0 else numbers


@dataclass(frozen=True, slots=True)
class OnColumns(Change):
    """`change` on those columns of a wider weight that an index picks; it needs nothing of the weight."""

    change: Change
    columns: slice | Sequence[int]

    @property
    def together(self) -> int:
        """That of the change."""
        return self.change.together

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Folds into its columns."""
        own = rows[:, self.columns]
        self.change.fold(own, first, multiplier)
        rows[:, self.columns] = own


@dataclass(frozen=True, slots=True)
class OnBlock(Change):
    """`change` on so many `rows` from `first` on of a tensor in which weights lie below each other."""

    change: Change
    first: int
    rows: int

    @property
    def together(self) -> int:
        """That of the change, where its groups begin and end at multiples of it in the tensor too; else its rows."""
        own = self.change.together
        return own if own and not (self.first % own or self.rows % own) else self.rows

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """The change settles on its own rows."""
        return replace(self, change=self.change.settled(partial(self._own_blocks, blocks), multiplier))

    @property
    def holds_all(self) -> bool:
        """As the change."""
        return holds_all(self.change)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Folds into those of the rows that are its own."""
        for own_first, own in self._own_blocks(lambda: iter([(first, rows)])):
            self.change.fold(own, own_first, multiplier)

    def _own_blocks(self, blocks: Blocks) -> Iterator[tuple[int, Any]]:
        for first, rows in blocks():
            begin, end = max(first, self.first), min(first + rows.shape[0], self.first + self.rows)
            if begin < end:
                yield begin - self.first, rows[begin - first : end - first]
