"""Several changes of one weight, one after another, while its rows go by."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import lcm
from typing import Any

from lora_inspect.maths.change import Change

# A change, and the multiplier that it is folded with.
Link = tuple[Change, float]
# Reads the weight in blocks of rows that begin and end at multiples of a number; 0 is for one block.
Read = Callable[[int], Iterator[tuple[int, Any]]]


def settled(links: Sequence[Link], read: Read) -> list[Link]:
    """The changes, each once it has seen the weight as those before it leave it."""
    done: list[Link] = []
    for change, multiplier in links:
        blocks = partial(folded, tuple(done), read, change.together)
        done.append((change.settled(blocks, multiplier), multiplier))
    return done


def folded(links: Sequence[Link], read: Read, together: int = 1) -> Iterator[tuple[int, Any]]:
    """(first row, rows) of the weight with settled changes in it, in blocks that keep `together` rows as well."""
    for first, rows in read(lcm(together, *(change.together for change, _ in links))):
        for change, multiplier in links:
            change.fold(rows, first, multiplier)
        yield first, rows
