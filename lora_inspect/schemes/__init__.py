"""The registry of naming schemes: every file of this folder with a record of the file's name, in capitals.

A module belongs to the scheme with the longest prefix of its name, unless its keys have suffixes that mark another
scheme. The scheme without a prefix takes the others.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import import_module

from lora_inspect.caching import remembering
from lora_inspect.schemes.record import LONGEST_SUFFIX, LOST, ModuleName, Scheme

SCHEMES: dict[str, Scheme] = {}
# Every prefix with its scheme, in the order in which they are tried.
_PREFIXES: list[tuple[str, Scheme]] = []
# Those that a name may have which begins with a letter, by that and by whether a suffix of its keys is a mark.
_TRIED: dict[tuple[str, bool], list[tuple[str, Scheme]]] = {}
# The suffixes of which modules of a scheme have one.
_MARKS: set[str] = set()
# Goes up with every change of the registry, for what is remembered of it.
_changes = 0
# The suffixes of all schemes in which a module's path ends: the role, and that end.
HIDING: dict[str, tuple[str, str]] = {}
# The schemes that spell a factor of LoRA as no algorithm does, by its suffix.
OWN_FACTORS: dict[str, list[Scheme]] = {}


def add(scheme: Scheme) -> None:
    """Register a scheme for all readers, merges and conversions.

    Raises ValueError for a name that is taken, and for another scheme's prefix if no suffix separates the two. Also
    raises it for a suffix without a dot or with too many letters, and for magnitudes without a suffix.
    """
    if scheme.name in SCHEMES:
        raise ValueError(f"there is a scheme called {scheme.name} already")
    for prefix, other in _PREFIXES:
        if prefix in scheme.prefixes and (set(other.marks) & set(scheme.marks) or not (other.marks or scheme.marks)):
            raise ValueError(f"{prefix!r} is a prefix of {other.name} already")
    suffixes = (*scheme.hiding, *scheme.suffixes.values())
    if wrong := [suffix for suffix in suffixes if len(suffix) > LONGEST_SUFFIX or suffix[:1] != "."]:
        raise ValueError(f"{wrong[0]!r} of {scheme.name} is no suffix: a dot and at most {LONGEST_SUFFIX - 1} letters")
    if scheme.writing and scheme.writing.magnitudes != LOST and "magnitude" not in scheme.suffixes:
        raise ValueError(f"{scheme.name} has no suffix for a magnitude: give it one, or its writing `magnitudes=LOST`")
    _note_change()
    SCHEMES[scheme.name] = scheme
    HIDING.update(scheme.hiding)
    for suffix in scheme.own_factors.values():
        OWN_FACTORS.setdefault(suffix, []).append(scheme)
    _MARKS.update(scheme.marks)
    _PREFIXES.extend((prefix, scheme) for prefix in scheme.prefixes)
    _PREFIXES.sort(key=lambda found: (not found[1].marks, -len(found[0]), found[1].name))


@contextmanager
def added(scheme: Scheme) -> Iterator[None]:
    """Register a scheme while the block runs."""
    add(scheme)
    try:
        yield
    finally:
        _note_change()
        del SCHEMES[scheme.name]
        for suffix in scheme.hiding:
            del HIDING[suffix]
        for suffix in scheme.own_factors.values():
            OWN_FACTORS[suffix].remove(scheme)
        _MARKS.intersection_update(mark for other in SCHEMES.values() for mark in other.marks)
        _PREFIXES[:] = [found for found in _PREFIXES if found[1] is not scheme]


def changes() -> int:
    """Return the number of changes to the registry; results from an earlier number are stale."""
    return _changes


def _note_change() -> None:
    global _changes
    _changes += 1
    _TRIED.clear()


def own_role(module: str, suffix: str) -> str | None:
    """Return the role that the scheme of a module's name gives to a suffix that no algorithm has; or None."""
    for scheme in OWN_FACTORS.get(suffix, ()):
        if module.startswith(tuple(scheme.prefixes)):
            return next(role for role, own in scheme.own_factors.items() if own == suffix)
    return None


def by_name(name: str) -> Scheme:
    """Return the scheme called `name`; raises KeyError."""
    return SCHEMES[name]


def written() -> tuple[str, ...]:
    """Return the names of the schemes that are written."""
    return tuple(sorted(scheme.name for scheme in SCHEMES.values() if scheme.writing))


def readings(module: str, suffixes: Collection[str] = ()) -> Iterator[ModuleName]:
    """Yield the parts of a module's name in every scheme that spells it so, in order of preference.

    `suffixes` are the suffixes of its keys.
    """
    for prefix, scheme in _tried(module[:1], not _MARKS.isdisjoint(suffixes)):
        if module.startswith(prefix) and (found := scheme.parts(module, prefix, suffixes)):
            yield found


def _tried(first: str, has_mark: bool) -> list[tuple[str, Scheme]]:
    known = _TRIED.get((first, has_mark))
    if known is None:
        own = (found for found in _PREFIXES if found[0][:1] in ("", first))
        known = _TRIED[first, has_mark] = [found for found in own if has_mark or not found[1].marks]
    return known


def recognise(module: str, suffixes: Collection[str] = ()) -> ModuleName:
    """Return the parts of a module's name. Raises ValueError for an empty one.

    `suffixes` are the suffixes of its keys.
    """
    marks = () if _MARKS.isdisjoint(suffixes) else tuple(suffix for suffix in suffixes if suffix in _MARKS)
    return _recognised(module, marks, _changes)


@remembering
def _recognised(module: str, marks: tuple[str, ...], changes: int) -> ModuleName:
    for name in readings(module, marks):
        return name
    raise ValueError(f"{module!r} is not a module name")


for _file in sorted(os.listdir(os.path.dirname(__file__))):
    _name, _ending = os.path.splitext(_file)
    if _ending == ".py" and _name != "__init__":
        _scheme = getattr(import_module(f"{__name__}.{_name}"), _name.upper(), None)
        if _scheme is not None:
            add(_scheme)
