"""The map between the rows of two weights, if two layouts arrange a layer's rows differently."""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Final, Literal

from ..fast_namedtuple import NamedTuple

# A share of as many rows as the weight has inputs: the query's, where keys and values have fewer heads.
INPUTS: Final = "inputs"
Share = int | Literal["inputs"]


class Again(NamedTuple):
    """The same rows `times` times, each time so many rows further in either weight."""

    times: int
    stride: int
    source_stride: int


class Runs(NamedTuple):
    """`times` runs of `length` neighbouring rows each, the same ones in two weights.

    Run j begins at row `start` + j·`stride` of the one weight and at row `source` + j·`source_stride` of the other.
    `again` gives the repeats of this row of runs, if there are any, in any order.
    """

    start: int
    length: int
    source: int = 0
    times: int = 1
    stride: int = 0
    source_stride: int = 0
    again: tuple[Again, ...] = ()

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return self.length * self.times * prod(more.times for more in self.again)

    @property
    def inverted(self) -> "Runs":
        """The same rows, seen from the other weight."""
        again = tuple(Again(times, source_stride, stride) for times, stride, source_stride in self.again)
        return Runs(self.source, self.length, self.start, self.times, self.source_stride, self.stride, again)

    def shifted(self, rows: int) -> "Runs":
        """Return the same rows, with `rows` more rows before them in the one weight."""
        return self._replace(start=self.start + rows)

    def each(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first row, row behind the last one, first row in the other weight) of every run."""
        levels = (*self.again, Again(self.times, self.stride, self.source_stride))
        for turns in product(*(range(level.times) for level in levels)):
            start = self.start + sum(turn * level.stride for turn, level in zip(turns, levels, strict=True))
            source = self.source + sum(turn * level.source_stride for turn, level in zip(turns, levels, strict=True))
            yield start, start + self.length, source


class Stacked(NamedTuple):
    """Parts below each other, with numbers of rows in these shares: `(1, 1, 1, 4)`, `(INPUTS, 1, 1)`.

    The rows that the shares of the inputs leave are divided by the numbers; there is at least one number.
    """

    shares: tuple[Share, ...]

    def rows(self, part: int, rows: int, inputs: int) -> int | None:
        """Return the number of rows of the whole if one part has `rows`, or None if that part does not show it."""
        share = self.shares[part]
        if not isinstance(share, int) or rows % share:
            return None
        numbers = sum(share for share in self.shares if isinstance(share, int))
        return rows // share * numbers + inputs * self.shares.count(INPUTS)

    def runs(self, rows: int, inputs: int) -> tuple[Runs, ...] | None:
        """Return the place of each part's rows in the whole, (rows, inputs), or None if the shares do not divide it."""
        fixed = inputs * self.shares.count(INPUTS)
        unit, odd = divmod(rows - fixed, sum(share for share in self.shares if isinstance(share, int)))
        if odd or unit < 1:
            return None
        found: list[Runs] = []
        start = 0
        for share in self.shares:
            length = share * unit if isinstance(share, int) else inputs
            found.append(Runs(start, length))
            start += length
        return tuple(found)


class Interleaved(NamedTuple):
    """`parts` parts that take turns, `run` rows of each at a time."""

    parts: int
    run: int = 1

    def rows(self, part: int, rows: int, inputs: int) -> int | None:
        """Return the number of rows of the whole if each part has `rows`."""
        return rows * self.parts

    def runs(self, rows: int, inputs: int) -> tuple[Runs, ...] | None:
        """Return the place of each part's rows in the whole, (rows, inputs), or None if the turns do not fill it."""
        turn = self.parts * self.run
        count, odd = divmod(rows, turn)
        if odd or not count:
            return None
        return tuple(Runs(part * self.run, self.run, 0, count, turn, self.run) for part in range(self.parts))


class Swapped(NamedTuple):
    """One part, with the lower half of the whole's rows as its upper half."""

    def rows(self, part: int, rows: int, inputs: int) -> int | None:
        """Return the number of rows of the whole: that of its part."""
        return rows

    def runs(self, rows: int, inputs: int) -> tuple[Runs, ...] | None:
        """Return the place of the part's rows in the whole, (rows, inputs), or None if it has no halves."""
        half, odd = divmod(rows, 2)
        return None if odd or not half else (Runs(0, half, half, 2, half, -half),)


class PairSwapped(NamedTuple):
    """One part, with the halves swapped where there are two rows an input, and else with the rows as they are.

    A modulation of many values is arranged alike everywhere; one of only shift and scale is not.
    """

    def rows(self, part: int, rows: int, inputs: int) -> int | None:
        """Return the number of rows of the whole: that of its part."""
        return rows

    def runs(self, rows: int, inputs: int) -> tuple[Runs, ...] | None:
        """Return the place of the part's rows in the whole, (rows, inputs), or None if there are none."""
        return Swapped().runs(rows, inputs) if rows == 2 * inputs else (Runs(0, rows),) if rows else None


class PairedHalves(NamedTuple):
    """One part with alternating rows of the halves of each of the `heads`; the whole stacks the halves.

    Both are ways to have the pairs of numbers that a rotary embedding turns.
    """

    heads: int

    def rows(self, part: int, rows: int, inputs: int) -> int | None:
        """Return the number of rows of the whole: that of its part."""
        return rows

    def runs(self, rows: int, inputs: int) -> tuple[Runs, ...] | None:
        """Return the place of the part's rows in the whole, (rows, inputs), or None if they are no pairs per head."""
        half, odd = divmod(rows, 2 * self.heads)
        if odd or not half:
            return None
        return (Runs(0, 1, 0, 2, half, 1, (Again(self.heads, 2 * half, 2 * half), Again(half, 1, 2))),)


class PartsOfHeads(NamedTuple):
    """One part, which has each of the `parts` of all `heads` together, where the whole has all of each head so."""

    heads: int
    parts: int

    def rows(self, part: int, rows: int, inputs: int) -> int | None:
        """Return the number of rows of the whole: that of its part."""
        return rows

    def runs(self, rows: int, inputs: int) -> tuple[Runs, ...] | None:
        """Return the place of the part's rows in the whole, (rows, inputs), or None if the heads do not divide them."""
        size, odd = divmod(rows, self.parts * self.heads)
        if odd or not size:
            return None
        return (Runs(0, size, 0, self.parts, size, self.heads * size, (Again(self.heads, self.parts * size, size),)),)


Arrangement = Stacked | Interleaved | Swapped | PairSwapped | PairedHalves | PartsOfHeads
