"""The registry of programs that load adapters: every file of `known/` with a record `CONSUMER`, or `CONSUMERS`.

`info` pays for every import, and few programs load a given file: what stands in `program_index.py`, which is written
from the records, says which files those are, and a program's own file is imported where one of its loaders is asked
for. A file that is not there yet is imported at once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module

from lora_inspect.programs.program_index import PROGRAMS
from lora_inspect.programs.record import Consumer, Loader, Loaders, Reads

CONSUMERS: dict[str, Consumer] = {}


def add(consumer: Consumer) -> None:
    """Makes a program known to `compat`, `convert --to` and `info`; raises ValueError for a name that is taken."""
    if consumer.name in CONSUMERS:
        raise ValueError(f"there is a program called {consumer.name} already")
    CONSUMERS[consumer.name] = consumer


@contextmanager
def added(consumer: Consumer) -> Iterator[None]:
    """Has a program known for as long as the block runs."""
    add(consumer)
    try:
        yield
    finally:
        del CONSUMERS[consumer.name]


def by_name(name: str) -> Consumer:
    """The program called `name`; raises KeyError."""
    return CONSUMERS[name]


def in_file(name: str) -> Sequence[Consumer]:
    """The programs of one file of `known/`, none of most."""
    module = import_module(f"{__name__}.known.{name}")
    return getattr(module, "CONSUMERS", None) or [*filter(None, [getattr(module, "CONSUMER", None)])]


def _loaders_in(file: str, at: int) -> Sequence[Loader]:
    return in_file(file)[at].loaders


def _indexed(file: str) -> Iterator[Consumer]:
    """The programs of a file, which is not imported for that."""
    for at, (name, title, version, schemes, uniform, sets_strength, reads) in enumerate(PROGRAMS[file]):
        make: Callable[[], Sequence[Loader]] = partial(_loaders_in, file, at)
        loaders = Loaders(tuple(Reads(*one) for one in reads), make)
        yield Consumer(name, title, version, loaders, schemes, uniform, sets_strength)


for _file in sorted(os.listdir(os.path.join(os.path.dirname(__file__), "known"))):
    _name, _ending = os.path.splitext(_file)
    if _ending == ".py" and _name != "__init__":
        for _consumer in _indexed(_name) if _name in PROGRAMS else in_file(_name):
            add(_consumer)
