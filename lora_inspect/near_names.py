"""The name that another spelling of it means, and the nearest one to a mistyped name. Standard library only."""

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from types import MappingProxyType

# The first letters of a name stand for it from so many on.
_LETTERS = 3


def meant(value: str, names: Iterable[str], titles: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """Return the name that is meant, or None if it is none of them or could be several.

    A value is a name or its title in any case and with other signs between the letters, or the first letters of it. Of
    "comfyui" and "comfyui-0.3.64", which begins with the other, "comfy" is the first one.
    """
    known = list(names)
    if value in known:
        return value
    spelled: dict[str, str] = {}
    for name in known:
        spelled.setdefault(_letters(name), name)
    for name in known:
        spelled.setdefault(_letters(titles.get(name, name)), name)
    wanted = _letters(value)
    if wanted in spelled:
        return spelled[wanted]
    begun = {name for letters, name in spelled.items() if letters.startswith(wanted)} if len(wanted) >= _LETTERS else ()
    shortest = min(begun, key=len, default=None)
    return shortest if shortest and all(name.startswith(shortest) for name in begun) else None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def suggestion(value: str, names: Iterable[str]) -> str:
    """Return a question for the nearest name, as the end of a sentence on a mistyped one, or empty if none is near."""
    known = {name.casefold(): name for name in names}
    nearest = nearest_name(value.casefold(), known)
    return f"; did you mean {known[nearest]}?" if nearest else ""


# How many names are looked at, and how many of these are compared letter by letter.
_LOOKED_AT, _COMPARED = 2_000, 10
_LEAST_RATIO = 0.6


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like `name`, or None if none is near; of many names it only looks at the first.

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


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()
