"""Which families a file's names may be of, told without the families' own files, which take time to import.

A mark is short for a pattern of names, dotted or not: 16 bits of a checksum. Two patterns may have one mark: a
family may be admitted whose names do not fit, but none is left out whose names do.
"""

from collections import Counter
from collections.abc import Mapping

from ..fast_namedtuple import NamedTuple
from .patterns import pattern_of, patterns_of
from .record import Architecture

# The largest prime of 16 bits.
_PRIME = 65521


class Marks(NamedTuple):
    """What of a family is known without its file: the marks of its layers' `paths`, and what its record says beside.

    The marks stand in one text, with blanks between them.
    """

    paths: str
    metadata_names: tuple[str, ...] = ()
    descends_from: str = ""

    def admit(self, of_marks: Mapping[str, int], least: float) -> bool:
        """Whether `least` of the names may be of the family, given by how many have each mark."""
        return sum(count for mark, count in of_marks.items() if mark in self.paths) >= least


def marks_of(architecture: Architecture) -> Marks:
    """The marks of a family. Borrowed names speak for the family that they are of."""
    paths = (path for layout in architecture.layouts if not layout.borrowed for path in layout.paths)
    marks = sorted({_mark(pattern) for pattern in patterns_of(paths, ".")})
    return Marks(" ".join(marks), architecture.metadata_names, architecture.descends_from)


def marked(counts: Mapping[str, int]) -> Counter[str]:
    """How many names have each mark, given by how many are of each pattern."""
    found: Counter[str] = Counter()
    for pattern, count in counts.items():
        found[_mark(pattern)] += count
    return found


def _mark(pattern: str) -> str:
    """The mark of a pattern, the same for names with dots and with underscores."""
    flat = pattern_of(pattern, "_")
    return f"{int.from_bytes(flat.encode('utf-8', 'surrogatepass'), 'little') % _PRIME:04x}"
