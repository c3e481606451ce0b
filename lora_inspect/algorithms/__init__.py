"""The registry of algorithms: every file of this folder with a record `ALGORITHM`, and recognised names.

A file of several algorithms that share one formula lists them in `ALGORITHMS`. `info` pays for every import, so each
file waits until a key, a config or a name needs it. The table in `file_index.py` lists the files of this folder; a file
that is not in the table is imported at once. The files in `on_demand` need no table, as their keys and configs have
their name: `hira.py` waits for a key with a part that begins with `hira_`, or for the `peft_type` HIRA.

The registry also knows algorithms by the names of their tensors only, to refuse a file that uses one by the right name.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from threading import RLock
from typing import Any

from lora_inspect.algorithms.file_index import NAMES, OPTIONS, SUFFIXES, TYPES
from lora_inspect.algorithms.record import Algorithm, Role, Shapes, Suffix, check_record
from lora_inspect.schemes.record import LONGEST_SUFFIX


def _named(
    name: str,
    title: str,
    *suffixes: str,
    marks: tuple[str, ...] = (),
    fits: Callable[[Shapes], bool] | None = None,
    why: str = "",
) -> Algorithm:
    roles = {suffix.lstrip("."): suffix for suffix in suffixes}
    return Algorithm(name=name, title=title, dialects={"": roles}, marks=marks, fits=fits, why=why)


RECOGNISED = (
    _named(
        "oft_flux",
        "OFT of sd-scripts in slices",
        *(f".oft_blocks.{number}" for number in range(4)),
        why="turns slices of a layer, as only sd-scripts does while it runs the layer; use the file there",
    ),
    _named(
        "reshaped",
        "a weight that ComfyUI widens",
        ".reshape_weight",
        why=(
            "needs zeros as padding before other changes are added, but a merge keeps the shapes of its base; write "
            "a base with the wider weight, and the adapter without its reshape_weight"
        ),
    ),
)


# Those that were asked for until now; `every` has all.
ALGORITHMS: dict[str, Algorithm] = {}
# What each suffix can be by them, as the name of an algorithm and the role in it, in the order in which it is tried.
CANDIDATES: dict[Suffix, tuple[tuple[str, Role], ...]] = {}
# Goes up with every change of the registry, for what is remembered of it.
_changes = 0
_FOLDER = os.path.dirname(__file__)
_ON_DEMAND = "on_demand"


def _files(folder: str) -> list[str]:
    found = sorted(os.path.splitext(name) for name in os.listdir(folder))
    return [name for name, ending in found if ending == ".py" and name != "__init__"]


# The files that have not been asked for yet: those on demand, and those of the table.
_WAITING = set(_files(os.path.join(_FOLDER, _ON_DEMAND)))
_FILES = _files(_FOLDER)
_INDEXED = {file for file in _FILES if NAMES.get(file)}
_FILE_OF = {name: file for file in _INDEXED for name in NAMES[file]}
# Those of the table by suffix, as long as nobody asked for it.
_BY_SUFFIX = dict(SUFFIXES)
# Held while a file is being asked for: what another thread asks for meanwhile waits, until all of the file is known.
_LOADING = RLock()
# In which order algorithms are tried: by their files, and in these as they stand there.
_TURNS: dict[str, int] = {}


def add(algorithm: Algorithm) -> None:
    """Register an algorithm for reading, merging and converting.

    Raises ValueError if its name is taken, or if a field of its record cannot be as it is, with the field's name.
    """
    _check([algorithm])
    _add(algorithm, len(_FILES))


def _check(records: Sequence[Algorithm]) -> None:
    """Check the records of one file, which may name each other; raise ValueError as `add` does."""
    for algorithm in records:
        check_record(algorithm, LONGEST_SUFFIX)
    names = [algorithm.name for algorithm in records]
    for index, algorithm in enumerate(records):
        if is_known(algorithm.name) or algorithm.name in names[:index]:
            raise ValueError(f"there is an algorithm called {algorithm.name} already")
        option_of = algorithm.option_of and algorithm.option_of[0]
        for field, other in (("beside", algorithm.beside), ("option_of", option_of)):
            if not (other is None or other in names or is_known(other)):
                raise ValueError(f"algorithm {algorithm.name!r}: {field} names {other!r}, which is no algorithm")


def _add(algorithm: Algorithm, turn: int) -> None:
    ALGORITHMS[algorithm.name] = algorithm
    _TURNS[algorithm.name] = turn
    for suffix, role in algorithm.suffixes.items():
        found = (*CANDIDATES.get(suffix, ()), (algorithm.name, role))
        CANDIDATES[suffix] = tuple(sorted(found, key=lambda one: _TURNS[one[0]])) if len(found) > 1 else found
    # Last, so that what another thread has found meanwhile counts no more.
    _note_change()


@contextmanager
def added(algorithm: Algorithm) -> Iterator[None]:
    """Register an algorithm while the block runs."""
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
    """Return how often the registry changed; an earlier lookup is out of date once this number differs."""
    return _changes


def _note_change() -> None:
    global _changes
    _changes += 1


def is_known(name: str) -> bool:
    """Return True if `name` is a loaded algorithm or one of the index."""
    if name in ALGORITHMS:
        return True
    with _LOADING:
        return name in ALGORITHMS or _FILE_OF.get(name) in _INDEXED


def by_name(name: str) -> Algorithm:
    """Return the algorithm called `name`; raise KeyError if there is none."""
    if name not in ALGORITHMS:
        _load_all([_FILE_OF[name]] if name in _FILE_OF else ())
    return ALGORITHMS[name]


def candidates(suffix: Suffix) -> tuple[tuple[str, Role], ...]:
    """Return the (algorithm name, role) pairs that a suffix can mean, in the order to try them."""
    if files := _BY_SUFFIX.get(suffix):
        _load_all(files)
        _BY_SUFFIX.pop(suffix, None)
    return CANDIDATES.get(suffix, ())


def every() -> Mapping[str, Algorithm]:
    """Load all algorithms and return them by name."""
    with _LOADING:
        _load_all(sorted(_INDEXED))
        for name in sorted(_WAITING):
            _load(name)
    return ALGORITHMS


def of_peft_type(method: str) -> list[Algorithm]:
    """Return the algorithms of a `peft_type`."""
    with _LOADING:
        _load_all(TYPES.get(method, ()))
        if method.lower() in _WAITING:
            _load(method.lower())
        found = [algorithm for algorithm in ALGORITHMS.values() if algorithm.peft_type == method]
    return sorted(found, key=lambda algorithm: _TURNS[algorithm.name])


def options_in(config: Mapping[str, Any]) -> list[Algorithm]:
    """Return the algorithms that are an option of another one and that a PEFT config turns on."""
    with _LOADING:
        for setting, files in OPTIONS.items():
            _load_all(files if config.get(setting) else ())
        return [one for one in ALGORITHMS.values() if one.option_of and config.get(one.option_of[1])]


def load_for(key: str) -> bool:
    """Load the algorithm named at the end of a key; return False if it names none that is not loaded yet."""
    with _LOADING:
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
    _load_waiting(name, _WAITING, f"{_ON_DEMAND}.{name}", len(_FILES))


def _load_waiting(file: str, waiting: set[str], path: str, turn: int) -> None:
    """Load a file that waits, once; after an error it waits on, so that the next request has the same error."""
    waiting.discard(file)
    try:
        _add_file(path, turn)
    except BaseException:
        waiting.add(file)
        raise


def _load_all(files: Iterable[str]) -> None:
    """Load the algorithms of the index that are in these files."""
    with _LOADING:
        for file in files:
            if file in _INDEXED:
                _load_waiting(file, _INDEXED, file, _FILES.index(file))


def _add_file(path: str, turn: int) -> None:
    module = import_module(f"{__name__}.{path}")
    records = getattr(module, "ALGORITHMS", None) or list(filter(None, [getattr(module, "ALGORITHM", None)]))
    try:
        _check(records)
    except ValueError as error:
        raise ValueError(f"{module.__name__}: {error}") from error
    for algorithm in records:
        _add(algorithm, turn)


for _name in _FILES:
    if _name not in NAMES:
        _add_file(_name, _FILES.index(_name))
for _algorithm in RECOGNISED:
    add(_algorithm)
