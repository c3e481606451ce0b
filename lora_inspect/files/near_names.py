"""What somebody may have meant who mistyped a name. Standard library only."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.locations import join, names_in
from lora_inspect.stores.address import is_remote

# How many names of a folder are looked at, and how many of these are compared letter by letter.
_LOOKED_AT, _COMPARED = 2_000, 10
_LEAST_RATIO = 0.6


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like `name`, None where none is near; of many names only the first are looked at.

    Names that have no more than their ending in common are not near each other.
    """
    from difflib import SequenceMatcher  # only an error needs it

    stem = SequenceMatcher(b=_stem(name))
    whole = SequenceMatcher(b=name)

    def rough(other: str) -> float:
        stem.set_seq1(_stem(other))
        return stem.quick_ratio()

    def exact(other: str) -> tuple[float, float]:
        stem.set_seq1(_stem(other))
        whole.set_seq1(other)
        return stem.ratio(), whole.ratio()

    looked_at = sorted(islice(names, _LOOKED_AT))  # of names that are as near as each other the same one each time
    compared = sorted(looked_at, key=rough, reverse=True)[:_COMPARED]
    nearest = max(compared, key=exact, default=None)
    return None if nearest is None or exact(nearest)[0] < _LEAST_RATIO else nearest


def nearest_path(path: str) -> str | None:
    """The path that is most like `path` in its folder, None where none is near or the folder cannot be read.

    A link that leads nowhere is not near itself, and what a run has left behind is what nobody means.
    """
    from lora_inspect.files.temp_files import is_leftover

    folder, name = os.path.split(path.rstrip(os.sep))
    try:
        others = (other for other in _names_in(folder) if join(folder, other) != path)
        nearest = nearest_name(name, (other for other in others if not is_leftover(other)))
    except (OSError, ValueError, LoraInspectError):  # a null character is no part of a path
        return None
    return None if nearest is None else join(folder, nearest)


def _names_in(folder: str) -> Iterator[str]:
    """The names in a folder, of which a disk tells one after the other."""
    if is_remote(folder):
        yield from names_in(folder)
        return
    with os.scandir(folder or os.curdir) as entries:
        yield from (entry.name for entry in entries)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()
