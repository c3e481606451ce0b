"""The registry of model families: every file of `families`, which has a record named `ARCHITECTURE`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from .record import Architecture, Layout, Size

# In the order in which candidates are named: by their names, and a family behind the one that it descends from.
ARCHITECTURES: list[Architecture] = []


def add(architecture: Architecture) -> None:
    """Makes a family known to all that reads, merges and converts.

    Raises ValueError for a name that is taken, and where the family that it descends from is not known.
    """
    names = {known.name for known in ARCHITECTURES}
    if architecture.name in names:
        raise ValueError(f"there is a family called {architecture.name} already")
    if architecture.descends_from and architecture.descends_from not in names:
        raise ValueError(f"{architecture.name} descends from {architecture.descends_from}, which is not known")
    ARCHITECTURES.append(architecture)
    ARCHITECTURES[:] = sorted(ARCHITECTURES, key=_lineage)


@contextmanager
def added(architecture: Architecture) -> Iterator[None]:
    """Has a family known for as long as the block runs."""
    add(architecture)
    try:
        yield
    finally:
        ARCHITECTURES.remove(architecture)


def by_name(name: str) -> Architecture:
    """The family of that name; KeyError, which lists the known names, for any other."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    raise KeyError(f"no architecture is named {name!r}; known are {', '.join(one.name for one in ARCHITECTURES)}")


def _lineage(architecture: Architecture) -> tuple[str, ...]:
    """The names of the families that it descends from, the oldest first, and its own."""
    above = architecture.descends_from
    return (*(_lineage(by_name(above)) if above else ()), architecture.name)


for _file in os.listdir(os.path.join(os.path.dirname(__file__), "families")):
    if _file.endswith(".py") and not _file.startswith("_"):
        ARCHITECTURES.append(import_module(f".families.{_file[:-3]}", __name__).ARCHITECTURE)
ARCHITECTURES[:] = sorted(ARCHITECTURES, key=_lineage)


__all__ = ["ARCHITECTURES", "Architecture", "Layout", "Size", "add", "added", "by_name"]
