"""Which blocks of a family a file's modules stand in: the indices below each module list."""

from collections.abc import Iterable, Mapping
from functools import cache

from .patterns import pattern_of, separator_of
from .record import Architecture, Layout

# Ten digits are past any block count, and int() of thousands of digits is an error.
_DIGITS = 10


def used_indices(paths: Iterable[str], families: Iterable[Architecture]) -> dict[str, set[int]]:
    """The indices below each module list of the families, by the pattern of the list's path."""
    layouts = (layout for architecture in families for layout in architecture.layouts)
    lists = frozenset[str]().union(*(_lists(layout.blocks) for layout in layouts))
    longest = max(map(len, lists), default=0)
    used: dict[str, set[int]] = {}
    for path in paths:
        separator = separator_of(path)
        above = ""
        for segment in path.split(separator):
            if segment.isdecimal() and segment.isascii():  # an `{i}` in the names of a file is no number
                if above in lists:
                    used.setdefault(above, set()).add(int(segment[:_DIGITS]))
                segment = "#"
            above = f"{above}{separator}{segment}" if above else segment
            if len(above) > longest:
                break
    return used


@cache
def _lists(blocks: tuple[tuple[str, int], ...]) -> frozenset[str]:
    """The patterns of the paths of a layout's module lists."""
    return frozenset(pattern_of(at, separator) for at, _ in blocks for separator in "._")


def holds(layout: Layout, used: Mapping[str, set[int]]) -> bool:
    """Whether no index is beyond the layout's blocks."""
    return all(max(_below(at, used), default=0) < count for at, count in layout.blocks)


def fills(layout: Layout, used: Mapping[str, set[int]]) -> bool:
    """Whether every block of the layout is used and none beyond; where some are left out, the model may be deeper."""
    return bool(layout.blocks) and all(_below(at, used) == set(range(count)) for at, count in layout.blocks)


def _below(at: str, used: Mapping[str, set[int]]) -> set[int]:
    return used.get(pattern_of(at, "."), set()) | used.get(pattern_of(at, "_"), set())
