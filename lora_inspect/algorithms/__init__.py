"""The registry of algorithms: every file of this folder that has a record `ALGORITHM`, and what is only recognised.

A file of several algorithms that have one formula has them in `ALGORITHMS`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from lora_inspect.algorithms.recognised import RECOGNISED
from lora_inspect.algorithms.record import Algorithm, Role, Suffix

ALGORITHMS: dict[str, Algorithm] = {}
# No suffix is longer: a key may have as many letters as a file has room for.
LONGEST_SUFFIX = 64
# What each suffix can be, as the name of an algorithm and the role in it, in the order in which it is tried.
CANDIDATES: dict[Suffix, tuple[tuple[str, Role], ...]] = {}


def add(algorithm: Algorithm) -> None:
    """Makes an algorithm known to all that reads, merges and converts; raises ValueError for a name that is taken."""
    if algorithm.name in ALGORITHMS:
        raise ValueError(f"there is an algorithm called {algorithm.name} already")
    if wrong := [suffix for suffix in algorithm.suffixes if len(suffix) > LONGEST_SUFFIX or suffix[:1] != "."]:
        raise ValueError(f"{wrong[0]!r} is no suffix: a dot and at most {LONGEST_SUFFIX - 1} letters")
    ALGORITHMS[algorithm.name] = algorithm
    for suffix, role in algorithm.suffixes.items():
        CANDIDATES[suffix] = (*CANDIDATES.get(suffix, ()), (algorithm.name, role))


@contextmanager
def added(algorithm: Algorithm) -> Iterator[None]:
    """Has an algorithm known for as long as the block runs."""
    add(algorithm)
    try:
        yield
    finally:
        del ALGORITHMS[algorithm.name]
        for suffix in algorithm.suffixes:
            others = tuple(found for found in CANDIDATES.pop(suffix) if found[0] != algorithm.name)
            CANDIDATES.update({suffix: others} if others else {})


def by_name(name: str) -> Algorithm:
    """The algorithm called `name`; raises KeyError."""
    return ALGORITHMS[name]


def _add_all() -> None:
    for name in sorted(os.listdir(os.path.dirname(__file__))):
        file, ending = os.path.splitext(name)
        if ending == ".py" and file != "__init__":
            module = import_module(f"{__name__}.{file}")
            for found in getattr(module, "ALGORITHMS", None) or filter(None, [getattr(module, "ALGORITHM", None)]):
                add(found)
    for algorithm in RECOGNISED:
        add(algorithm)


_add_all()
