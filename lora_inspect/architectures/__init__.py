"""The registry of model families: every file of `families`, with its record `ARCHITECTURE` and its name.

`info` pays for every import, and a file's names match few families: `admitted` imports only those. It asks the marks in
`family_marks.py`, which a script writes from the records; a family without marks there is imported at once.

A mark is short for a pattern of names, dotted or not: 16 bits of a checksum. Two patterns may have one mark: `admitted`
may return a family that does not match, but it never leaves out one that does.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

from ..fast_namedtuple import NamedTuple
from .family_marks import DESCENDS_FROM, METADATA_NAMES, PATHS
from .patterns import pattern_of, patterns_of
from .record import Architecture, Layout, Size

__all__ = [
    "Architecture",
    "Layout",
    "Size",
    "add",
    "added",
    "admitted",
    "by_name",
    "changes",
    "every",
    "metadata_names",
    "names",
]


# The largest prime of 16 bits.
_PRIME = 65521


class Marks(NamedTuple):
    """The facts of a family that are known without its file: marks of its layers' `paths`, and parts of its record.

    The marks are in one text, separated by blanks.
    """

    paths: str
    metadata_names: tuple[str, ...] = ()
    descends_from: str = ""

    def admit(self, of_marks: Mapping[str, int], least: float) -> bool:
        """Return True if `least` of the names may be of the family, given the number of names with each mark."""
        return sum(count for mark, count in of_marks.items() if mark in self.paths) >= least


def marks_of(architecture: Architecture) -> Marks:
    """Return the marks of a family; borrowed names are evidence for the family that they are of."""
    paths = (path for layout in architecture.layouts if not layout.borrowed for path in layout.paths)
    marks = sorted({_mark(pattern) for pattern in patterns_of(paths, ".")})
    return Marks(" ".join(marks), architecture.metadata_names, architecture.descends_from)


def marked(counts: Mapping[str, int]) -> Counter[str]:
    """Return the number of names with each mark, given the number of names of each pattern."""
    found: Counter[str] = Counter()
    for pattern, count in counts.items():
        found[_mark(pattern)] += count
    return found


def _mark(pattern: str) -> str:
    """Return the mark of a pattern, the same for names with dots and with underscores."""
    flat = pattern_of(pattern, "_")
    return f"{int.from_bytes(flat.encode('utf-8', 'surrogatepass'), 'little') % _PRIME:04x}"


_LOADED: dict[str, Architecture] = {}
# Goes up with every family that is added or taken away, for what is remembered of the registry.
_changes = 0
# The families whose files have not been asked for yet.
_WAITING = {
    file[:-3]
    for file in os.listdir(os.path.join(os.path.dirname(__file__), "families"))
    if file.endswith(".py") and not file.startswith("_")
}


def add(architecture: Architecture) -> None:
    """Register a family for reading, merging and converting.

    Raises ValueError for a name that is taken, or if the family that it descends from is not known.
    """
    if architecture.name in names():
        raise ValueError(f"there is a family called {architecture.name} already")
    above = architecture.descends_from
    if above and above not in names():
        raise ValueError(f"{architecture.name} descends from {above}, which is not known")
    _note_change()
    _LOADED[architecture.name] = architecture


@contextmanager
def added(architecture: Architecture) -> Iterator[None]:
    """Register a family while the block runs."""
    add(architecture)
    try:
        yield
    finally:
        _note_change()
        del _LOADED[architecture.name]


def changes() -> int:
    """Return how often the registry changed; an earlier lookup is out of date once this number differs."""
    return _changes


def _note_change() -> None:
    global _changes
    _changes += 1


def every() -> list[Architecture]:
    """Return all families in the order in which candidates are named.

    They are sorted by name, with a family after the one that it descends from.
    """
    return sorted(map(by_name, names()), key=_lineage)


def names() -> list[str]:
    """Return the names of all families, in no order."""
    # One that another thread is just loading is in both.
    return [*{*_WAITING, *_LOADED}]


def by_name(name: str) -> Architecture:
    """Return the family of that name; raise KeyError, which lists the known names, for any other."""
    if name in _WAITING:
        _LOADED[name] = import_module(f".families.{name}", __name__).ARCHITECTURE
        _WAITING.discard(name)
    if name not in _LOADED:
        raise KeyError(f"no architecture is named {name!r}; choose from {', '.join(one.name for one in every())}")
    return _LOADED[name]


def admitted(counts: Mapping[str, int], least: float) -> list[Architecture]:
    """Return all families with a layout that may have `least` of the names, given the number of each pattern.

    They are in the order in which candidates are named.
    """
    of_marks = marked(counts)
    found = [name for name in names() if _marks(name).admit(of_marks, least)]
    return sorted(map(by_name, found), key=_lineage)


def metadata_names() -> Iterable[tuple[str, tuple[str, ...]]]:
    """Return the metadata names of each family after its name, in the order in which candidates are named."""
    known = {name: _marks(name) for name in names()}

    def lineage(name: str) -> tuple[str, ...]:
        above = known[name].descends_from
        return (*(lineage(above) if above else ()), name)

    return [(name, known[name].metadata_names) for name in sorted(known, key=lineage)]


def _marks(name: str) -> Marks:
    """Return the marks of a family from the table, or from the record of an added one."""
    if name in PATHS:
        return Marks(PATHS[name], METADATA_NAMES.get(name, ()), DESCENDS_FROM.get(name, ""))
    return marks_of(by_name(name))


def _lineage(architecture: Architecture) -> tuple[str, ...]:
    """Return the names of the families that it descends from, the oldest first, and its own."""
    above = architecture.descends_from
    return (*(_lineage(by_name(above)) if above else ()), architecture.name)
