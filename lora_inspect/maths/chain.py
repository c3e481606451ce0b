"""Several changes of one weight, one after another, while its rows go by."""

from collections.abc import Callable, Iterator, Sequence
from math import lcm
from typing import Any, Protocol, runtime_checkable

from lora_inspect.maths.change import Change, Measure, total

# A change, and the multiplier that it is folded with.
Link = tuple[Change, float]
# Reads the weight in blocks of rows that begin and end at multiples of a number; 0 is for one block.
Read = Callable[[int], Iterator[tuple[int, Any]]]


@runtime_checkable
class SharedRead(Protocol):
    """A way to read a weight that several threads can go together."""

    def __call__(self, together: int) -> Iterator[tuple[int, Any]]:
        """As all of them: one block after the other, in this thread."""

    def total(self, together: int, measure: Measure) -> Any:
        """The sum of what `measure` makes of each block, in the order of the blocks; None where there is none."""


class Behind:
    """The weight as settled `links` leave it, in blocks that keep `together` rows as well."""

    def __init__(self, links: Sequence[Link], read: Read, together: int = 1) -> None:
        self._links, self._read = links, read
        self._together = lcm(together, together_in(links))

    def __call__(self) -> Iterator[tuple[int, Any]]:
        """(first row, rows), one block after the other."""
        for first, rows in self._read(self._together):
            fold_all(self._links, rows, first)
            yield first, rows

    def total(self, measure: Measure) -> Any:
        """The sum of what `measure` makes of each block, in the order of the blocks; None where there is none."""

        def behind(first: int, rows: Any) -> Any:
            fold_all(self._links, rows, first)
            return measure(first, rows)

        if isinstance(self._read, SharedRead):
            return self._read.total(self._together, behind)
        return total(lambda: self._read(self._together), behind)


def settled(links: Sequence[Link], read: Read) -> list[Link]:
    """The changes, each once it has seen the weight as those before it leave it."""
    done: list[Link] = []
    for change, multiplier in links:
        done.append((change.settled(Behind(tuple(done), read, change.together), multiplier), multiplier))
    return done


def folded(links: Sequence[Link], read: Read, together: int = 1) -> Iterator[tuple[int, Any]]:
    """(first row, rows) of the weight with settled changes in it, in blocks that keep `together` rows as well."""
    return Behind(links, read, together)()


def fold_all(links: Sequence[Link], rows: Any, first: int) -> None:
    """Folds settled changes into rows of the weight, in place, one after the other."""
    for change, multiplier in links:
        change.fold(rows, first, multiplier)


def together_in(links: Sequence[Link]) -> int:
    """How many rows belong together for all of them; 0 is for all rows."""
    return lcm(*(change.together for change, _ in links))
