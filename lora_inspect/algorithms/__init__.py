"""The registry of algorithms: every file of this folder that has a record `ALGORITHM`, and what is only recognised.

A file of several algorithms that have one formula has them in `ALGORITHMS`. What is met in most adapters is imported at
once. The files in `on_demand` wait until a key or a config has their name: `hira.py` for a key with a part that begins
with `hira_`, or for the `peft_type` HIRA. `info` pays for every import.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

from lora_inspect.algorithms.recognised import RECOGNISED
from lora_inspect.algorithms.record import Algorithm, Role, Suffix
from lora_inspect.schemes.record import LONGEST_SUFFIX

ALGORITHMS: dict[str, Algorithm] = {}
# What each suffix can be, as the name of an algorithm and the role in it, in the order in which it is tried.
CANDIDATES: dict[Suffix, tuple[tuple[str, Role], ...]] = {}
# Goes up with every change of the registry, for what is remembered of it.
_changes = 0
_FOLDER = os.path.dirname(__file__)
_ON_DEMAND = "on_demand"


def _files(folder: str) -> list[str]:
    found = sorted(os.path.splitext(name) for name in os.listdir(folder))
    return [name for name, ending in found if ending == ".py" and name != "__init__"]


# The files that have not been asked for yet.
_WAITING = set(_files(os.path.join(_FOLDER, _ON_DEMAND)))


def add(algorithm: Algorithm) -> None:
    """Makes an algorithm known to all that reads, merges and converts; raises ValueError for a name that is taken."""
    if algorithm.name in ALGORITHMS:
        raise ValueError(f"there is an algorithm called {algorithm.name} already")
    if wrong := [suffix for suffix in algorithm.suffixes if len(suffix) > LONGEST_SUFFIX or suffix[:1] != "."]:
        raise ValueError(f"{wrong[0]!r} is no suffix: a dot and at most {LONGEST_SUFFIX - 1} letters")
    _note_change()
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
        _note_change()
        del ALGORITHMS[algorithm.name]
        for suffix in algorithm.suffixes:
            others = tuple(found for found in CANDIDATES.pop(suffix) if found[0] != algorithm.name)
            CANDIDATES.update({suffix: others} if others else {})


def changes() -> int:
    """How often the registry changed: what was found in it before another number counts no more."""
    return _changes


def _note_change() -> None:
    global _changes
    _changes += 1


def by_name(name: str) -> Algorithm:
    """The algorithm called `name`; raises KeyError."""
    return ALGORITHMS[name]


def every() -> Mapping[str, Algorithm]:
    """All algorithms by name, those on demand as well."""
    for name in sorted(_WAITING):
        _load(name)
    return ALGORITHMS


def of_peft_type(method: str) -> list[Algorithm]:
    """The algorithms of a `peft_type`."""
    if method.lower() in _WAITING:
        _load(method.lower())
    return [algorithm for algorithm in ALGORITHMS.values() if algorithm.peft_type == method]


def load_for(key: str) -> bool:
    """Has the algorithm known whose name a key has at its end; False where there is none that was not known before."""
    for part in key[-LONGEST_SUFFIX:].split("."):
        name = part
        while name not in _WAITING:
            name, underscore, _ = name.rpartition("_")
            if not underscore:
                break
        else:
            _load(name)
            return True
    return False


def _load(name: str) -> None:
    _WAITING.discard(name)
    _add_file(f"{__name__}.{_ON_DEMAND}.{name}")


def _add_file(path: str) -> None:
    module = import_module(path)
    for found in getattr(module, "ALGORITHMS", None) or filter(None, [getattr(module, "ALGORITHM", None)]):
        add(found)


for _name in _files(_FOLDER):
    _add_file(f"{__name__}.{_name}")
for _algorithm in RECOGNISED:
    add(_algorithm)
