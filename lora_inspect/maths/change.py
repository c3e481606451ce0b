"""The change of one weight by an adapter: folded into it in place, a block of rows at a time.

A weight is a matrix (out, columns) here; the columns of a convolution are in·kernel. Changes keep no state between
calls, so rows may come in any blocks and in any order. A change may be of a part of a weight, several changes in a row,
or one product of factors for each expert. Tensor methods only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise
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
        """Yield (first row, rows), one block after the other, in this thread."""

    def total(self, measure: Measure) -> Any:
        """Return the sum of `measure` over the blocks, in their order; None if there are none."""


def total(blocks: Blocks, measure: Measure) -> Any:
    """Return the sum of `measure` over the blocks, in their order; None if there are none."""
    if isinstance(blocks, SharedBlocks):
        return blocks.total(measure)
    parts = (measure(first, rows) for first, rows in blocks())
    return reduce(add, parts, next(parts, None))


def summed(blocks: Blocks, measure: Measure, like: Any) -> Any:
    """Return the float64 sum of `measure` over the blocks, in the type of `like`.

    A float32 that is rounded from it once does not depend on the division into blocks.
    """
    return total(blocks, measure).to(like.dtype)


def summed_products(left: Any, blocks: Blocks) -> Any:
    """Return left @ W, of (n, out) and the weight."""
    wide = left.double()
    return summed(blocks, lambda first, rows: wide[:, first : first + rows.shape[0]] @ rows.double(), left)


class Change(Protocol):
    """A change of one weight, in blocks of rows that begin and end at multiples of `together`; 0: all at once.

    A change that needs nothing of the weight and has no better way for a transposed one defines only `fold`.
    """

    __slots__ = ()

    @property
    def together(self) -> int:
        """The number of rows that belong together, from the first row on."""

    @property
    def holds_all(self) -> bool:
        """True if it holds the whole weight in memory while it settles."""
        return False

    def settled(self, blocks: Blocks, multiplier: float) -> "Change":
        """Return the change after it has read the whole weight as needed, to be folded with this `multiplier`."""
        return self

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Fold the change into `rows` (n, columns), the rows `first` to `first` + n of the weight."""

    def transposed(self) -> "Change":
        """Return the same change for the weight stored as (in, out)."""
        return Transposed(self)


def holds_all(change: Change) -> bool:
    """Return True if a change holds the whole weight in memory while it settles; False if it does not say."""
    return getattr(change, "holds_all", False)


@dataclass(frozen=True, slots=True)
class LowRank(Change):
    """W + multiplier · scale · up @ down, with up (out, rank) and down (rank, columns)."""

    up: Any
    down: Any
    scale: float
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Add the product's rows."""
        add_product(rows, self.up[first : first + rows.shape[0]] * (self.scale * multiplier), self.down)

    def transposed(self) -> Change:
        """Return the product with its factors exchanged and transposed."""
        return replace(self, up=self.down.transpose(0, 1).contiguous(), down=self.up.transpose(0, 1).contiguous())


@dataclass(frozen=True, slots=True)
class Additive(Change):
    """W + multiplier · scale · delta; `delta_rows(first, last)` computes the rows `first` to `last` of delta."""

    delta_rows: Callable[[int, int], Any]
    scale: float
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Add the rows of delta."""
        rows.add_(self.delta_rows(first, first + rows.shape[0]) * (self.scale * multiplier))


def added(matrix: Any, scale: float) -> Additive:
    """Return W + multiplier · scale · matrix, for a matrix with all rows (out, columns)."""
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
        """Fold both."""
        self.first.fold(rows, first, multiplier)
        self.second.fold(rows, first, multiplier)

    def transposed(self) -> Change:
        """Return both changes for the transposed weight."""
        return Both(self.first.transposed(), self.second.transposed())


@dataclass(frozen=True, slots=True)
class Replaced(Change):
    """`values` (out, columns) in the place of the weight, whole: there is no multiplier but 1."""

    values: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Write the values over the rows; raises ValueError for a multiplier that means nothing."""
        if multiplier != 1:
            raise ValueError(f"a weight is replaced or not, which a multiplier of {multiplier:g} does not say")
        rows.copy_(self.values[first : first + rows.shape[0]])

    def transposed(self) -> Change:
        """Return the values turned round."""
        return replace(self, values=self.values.transpose(0, 1).contiguous())


@dataclass(frozen=True, slots=True)
class ReplacedRows(Change):
    """`values` (count, columns) in place of some rows of the weight; `rows` are their numbers, each once.

    There is no multiplier but 1.
    """

    rows: Sequence[int]
    values: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Write the values over their rows; raises ValueError for a multiplier that means nothing."""
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
        """Settle the change on the weight turned round, which comes in one block."""
        return replace(self, change=self.change.settled(partial(self._turned, blocks), multiplier))

    @property
    def holds_all(self) -> bool:
        """All rows come at once."""
        return True

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Turn all rows round, fold, and turn them back."""
        ((_, turned),) = self._turned(lambda: iter([(first, rows)]))
        self.change.fold(turned, 0, multiplier)
        rows.copy_(turned.transpose(0, 1))

    def transposed(self) -> Change:
        """Return the change itself."""
        return self.change

    def _turned(self, blocks: Blocks) -> Iterator[tuple[int, Any]]:
        for _, rows in blocks():
            yield 0, rows.transpose(0, 1).contiguous()


@dataclass(frozen=True, slots=True)
class OnRows(Change):
    """`change` on some rows of another weight; each of the `runs` (start, stop, source) has its rows from `source`.

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
        """Settle the change on its own rows."""
        return replace(self, change=self.change.settled(partial(self._own_blocks, blocks), multiplier))

    @property
    def holds_all(self) -> bool:
        """As the change."""
        return holds_all(self.change)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Fold into the own rows among these."""
        for own_first, own in self._own(first, rows):
            self.change.fold(own, own_first, multiplier)

    def transposed(self) -> Change:
        """Return a product of factors on columns; any other change of the whole weight, turned round."""
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
    """Return the numbers as an index, a slice without a copy if they are evenly spaced."""
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
        """Fold into its columns."""
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
        """Settle the change on its own rows."""
        return replace(self, change=self.change.settled(partial(self._own_blocks, blocks), multiplier))

    @property
    def holds_all(self) -> bool:
        """As the change."""
        return holds_all(self.change)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Fold into the own rows among these."""
        for own_first, own in self._own_blocks(lambda: iter([(first, rows)])):
            self.change.fold(own, own_first, multiplier)

    def _own_blocks(self, blocks: Blocks) -> Iterator[tuple[int, Any]]:
        for first, rows in blocks():
            begin, end = max(first, self.first), min(first + rows.shape[0], self.first + self.rows)
            if begin < end:
                yield begin - self.first, rows[begin - first : end - first]


# A change, and the multiplier that it is folded with.
Link = tuple[Change, float]
# Reads the weight in blocks of rows that begin and end at multiples of a number; 0 is for one block.
Read = Callable[[int], Iterator[tuple[int, Any]]]


@runtime_checkable
class SharedRead(Protocol):
    """A way to read a weight that several threads can go together."""

    def __call__(self, together: int) -> Iterator[tuple[int, Any]]:
        """Yield (first row, rows), one block after the other, in this thread."""

    def total(self, together: int, measure: Measure) -> Any:
        """Return the sum of `measure` over the blocks, in their order; None if there are none."""


class Behind:
    """The weight as settled `links` leave it, in blocks that keep `together` rows as well."""

    def __init__(self, links: Sequence[Link], read: Read, together: int = 1) -> None:
        self._links, self._read = links, read
        self._together = lcm(together, together_in(links))

    def __call__(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, rows), one block after the other."""
        for first, rows in self._read(self._together):
            fold_all(self._links, rows, first)
            yield first, rows

    def total(self, measure: Measure) -> Any:
        """Return the sum of `measure` over the blocks, in their order; None if there are none."""

        def behind(first: int, rows: Any) -> Any:
            fold_all(self._links, rows, first)
            return measure(first, rows)

        if isinstance(self._read, SharedRead):
            return self._read.total(self._together, behind)
        return total(lambda: self._read(self._together), behind)


def settled(links: Sequence[Link], read: Read) -> list[Link]:
    """Return the changes, each settled on the weight as the earlier ones leave it."""
    done: list[Link] = []
    for change, multiplier in links:
        done.append((change.settled(Behind(tuple(done), read, change.together), multiplier), multiplier))
    return done


def folded(links: Sequence[Link], read: Read, together: int = 1) -> Iterator[tuple[int, Any]]:
    """Yield (first row, rows) of the weight with settled changes, in blocks that also keep `together` rows."""
    return Behind(links, read, together)()


def deltas(links: Sequence[Link], read: Read) -> Iterator[tuple[int, Any]]:
    """Yield (first row, W' - W) in blocks: the true change of the weight by links that have not settled."""
    done = settled(links, read)
    for first, rows in read(together_in(done)):
        changed = rows.clone()
        fold_all(done, changed, first)
        yield first, changed.sub_(rows)


def fold_all(links: Sequence[Link], rows: Any, first: int) -> None:
    """Fold settled changes into rows of the weight, in place, one after the other."""
    for change, multiplier in links:
        change.fold(rows, first, multiplier)


def together_in(links: Sequence[Link]) -> int:
    """Return the number of rows that belong together for all of them; 0 means all rows."""
    return lcm(*(change.together for change, _ in links))


@dataclass(frozen=True, slots=True)
class ExpertProducts(Change):
    """W_e + multiplier · scale · up_e @ down_e; expert e has the rows of W, (experts·out, columns), from e·out.

    `up` is (experts, out, rank) and `down` (experts, rank, columns).
    """

    up: Any
    down: Any
    scale: float
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Add to the rows of each expert the rows of its product."""
        for expert, begin, end in self._of_experts(first, first + rows.shape[0]):
            start = expert * self.up.shape[1]
            up = self.up[expert, begin - start : end - start]
            add_product(rows[begin - first : end - first], up * (self.scale * multiplier), self.down[expert])

    def _of_experts(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield (expert, its first row, the row behind its last one) among the rows `first` to `last`."""
        out = self.up.shape[1]
        for expert in range(first // out, -(-last // out)):
            yield expert, max(first, expert * out), min(last, (expert + 1) * out)
