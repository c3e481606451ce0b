"""What an adapter does to one weight: folded into it in place, a block of rows at a time.

A weight is a matrix (out, columns) here, where the columns of a convolution are in·kernel. Changes keep no state
between calls, so that rows may come in any blocks and in any order. Written with tensor methods alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from math import lcm
from operator import add
from typing import Any, Protocol, runtime_checkable

from lora_inspect.maths.products import add_product

# Reads the weight: (first row, rows) for all of it, in blocks that begin and end where they may, in memory that is
# used again.
Blocks = Callable[[], Iterator[tuple[int, Any]]]
# What is computed of a block: (first row, rows), which stay as they are.
Measure = Callable[[int, Any], Any]


@runtime_checkable
class SharedBlocks(Protocol):
    """Blocks that several threads can go through together."""

    def __call__(self) -> Iterator[tuple[int, Any]]:
        """As all blocks: one after the other, in this thread."""

    def total(self, measure: Measure) -> Any:
        """The sum of what `measure` makes of each block, in the order of the blocks; None where there is none."""


def total(blocks: Blocks, measure: Measure) -> Any:
    """The sum of what `measure` makes of each block, in the order of the blocks; None where there is none."""
    if isinstance(blocks, SharedBlocks):
        return blocks.total(measure)
    parts = (measure(first, rows) for first, rows in blocks())
    return reduce(add, parts, next(parts, None))


def summed(blocks: Blocks, measure: Measure, like: Any) -> Any:
    """The sum of what `measure` makes of each block in float64, in the type of `like`.

    A float32 that is rounded from it once does not show how the rows are cut.
    """
    return total(blocks, measure).to(like.dtype)


def summed_products(left: Any, blocks: Blocks) -> Any:
    """left @ W, of (n, out) and the weight."""
    wide = left.double()
    return summed(blocks, lambda first, rows: wide[:, first : first + rows.shape[0]] @ rows.double(), left)


class Change(Protocol):
    """A change of one weight, in blocks of rows that begin and end at multiples of `together`; 0: all at once.

    One that needs nothing of the weight and knows no better way to change a transposed one is `fold` alone.
    """

    __slots__ = ()

    @property
    def together(self) -> int:
        """How many rows belong together, from the first row on."""

    @property
    def holds_all(self) -> bool:
        """Whether it holds the whole weight in memory while it settles."""
        return False

    def settled(self, blocks: Blocks, multiplier: float) -> "Change":
        """The change once it has seen what it needs of the whole weight, to be folded with this `multiplier`."""
        return self

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Folds it into `rows` (n, columns), the rows `first` to `first` + n of the weight."""

    def transposed(self) -> "Change":
        """The same change of the weight that is stored as (in, out)."""
        return Transposed(self)


def holds_all(change: Change) -> bool:
    """Whether a change holds the whole weight in memory while it settles; one that does not say so does not."""
    return getattr(change, "holds_all", False)


@dataclass(frozen=True, slots=True)
class LowRank(Change):
    """W + multiplier · scale · up @ down, with up (out, rank) and down (rank, columns)."""

    up: Any
    down: Any
    scale: float
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Adds the product's rows."""
        add_product(rows, self.up[first : first + rows.shape[0]] * (self.scale * multiplier), self.down)

    def transposed(self) -> Change:
        """The factors change places."""
        return replace(self, up=self.down.transpose(0, 1).contiguous(), down=self.up.transpose(0, 1).contiguous())


@dataclass(frozen=True, slots=True)
class Additive(Change):
    """W + multiplier · scale · delta, of which `delta_rows(first, last)` computes the rows `first` to `last`."""

    delta_rows: Callable[[int, int], Any]
    scale: float
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Adds the rows of delta."""
        rows.add_(self.delta_rows(first, first + rows.shape[0]) * (self.scale * multiplier))


def added(matrix: Any, scale: float) -> Additive:
    """W + multiplier · scale · matrix, of which all rows (out, columns) are there."""
    return Additive(partial(_rows, matrix), scale)


def _rows(matrix: Any, first: int, last: int) -> Any:
    return matrix[first:last]


@dataclass(frozen=True, slots=True)
class Both(Change):
    """Two changes of one weight that need nothing of it, one after the other."""

    first: Change
    second: Change

    @property
    def together(self) -> int:
        """Groups of rows that are groups of both."""
        return lcm(self.first.together, self.second.together)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Folds both."""
        self.first.fold(rows, first, multiplier)
        self.second.fold(rows, first, multiplier)

    def transposed(self) -> Change:
        """Both of them."""
        return Both(self.first.transposed(), self.second.transposed())


@dataclass(frozen=True, slots=True)
class Replaced(Change):
    """`values` (out, columns) in the place of the weight, whole: there is no multiplier but 1."""

    values: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Writes the values over the rows; raises ValueError for a multiplier that means nothing."""
        if multiplier != 1:
            raise ValueError(f"a weight is replaced or not, which a multiplier of {multiplier:g} does not say")
        rows.copy_(self.values[first : first + rows.shape[0]])

    def transposed(self) -> Change:
        """The values turned round."""
        return replace(self, values=self.values.transpose(0, 1).contiguous())


@dataclass(frozen=True, slots=True)
class ReplacedRows(Change):
    """`values` (count, columns) in the place of some rows of the weight, whose numbers are `rows`, each once.

    There is no multiplier but 1.
    """

    rows: Sequence[int]
    values: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Writes the values over their rows; raises ValueError for a multiplier that means nothing."""
        if multiplier != 1:
            raise ValueError(f"rows are replaced or not, which a multiplier of {multiplier:g} does not say")
        last = first + rows.shape[0]
        for at, number in enumerate(self.rows):
            if first <= number < last:
                rows[number - first].copy_(self.values[at])


@dataclass(frozen=True, slots=True)
class Transposed(Change):
    """Any change, of a weight that is stored as (in, out): the whole weight is turned round and back."""

    change: Change
    together: int = 0

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """The change settles on the weight turned round, which comes in one block."""
        return replace(self, change=self.change.settled(partial(self._turned, blocks), multiplier))

    @property
    def holds_all(self) -> bool:
        """All rows come at once."""
        return True

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Turns all rows round, folds, and turns them back."""
        ((_, turned),) = self._turned(lambda: iter([(first, rows)]))
        self.change.fold(turned, 0, multiplier)
        rows.copy_(turned.transpose(0, 1))

    def transposed(self) -> Change:
        """The change itself."""
        return self.change

    def _turned(self, blocks: Blocks) -> Iterator[tuple[int, Any]]:
        for _, rows in blocks():
            yield 0, rows.transpose(0, 1).contiguous()
