"""The registry of programs that load adapters: every file of `known/` with a record `PROGRAM`, or `PROGRAMS`.

A folder in `known/` has files of programs too: `trainers/diffsynth.py` is the file "trainers.diffsynth".

`info` pays for every import, and few programs load a given file: what stands in `program_index.py`, which is written
from the records, says which files those are, and a program's own file is imported where one of its loaders is asked
for. A file that is not there yet is imported at once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module

from lora_inspect.programs.program_index import INDEX
from lora_inspect.programs.record import Loader, Loaders, Program, Reads

PROGRAMS: dict[str, Program] = {}


def add(program: Program) -> None:
    """Makes a program known to `compat`, `convert --to` and `info`; raises ValueError for a name that is taken."""
    if program.name in PROGRAMS:
        raise ValueError(f"there is a program called {program.name} already")
    PROGRAMS[program.name] = program


@contextmanager
def added(program: Program) -> Iterator[None]:
    """Has a program known for as long as the block runs."""
    add(program)
    try:
        yield
    finally:
        del PROGRAMS[program.name]


def by_name(name: str) -> Program:
    """The program called `name`; raises KeyError."""
    return PROGRAMS[name]


def in_file(name: str) -> Sequence[Program]:
    """The programs of one file of `known/`, none of most."""
    module = import_module(f"{__name__}.known.{name}")
    return getattr(module, "PROGRAMS", None) or [*filter(None, [getattr(module, "PROGRAM", None)])]


def _loaders_in(file: str, at: int) -> Sequence[Loader]:
    return in_file(file)[at].loaders


def _indexed(file: str) -> Iterator[Program]:
    """The programs of a file, which is not imported for that."""
    for at, (name, title, version, schemes, uniform, sets_multiplier, ran, distributions, reads) in enumerate(
        INDEX[file]
    ):
        make: Callable[[], Sequence[Loader]] = partial(_loaders_in, file, at)
        loaders = Loaders(tuple(Reads(*one) for one in reads), make)
        yield Program(name, title, version, loaders, schemes, uniform, sets_multiplier, ran, distributions)


def files() -> Iterator[str]:
    """The files of `known/` and of its folders."""
    return _files_in(os.path.join(os.path.dirname(__file__), "known"))


def _files_in(folder: str, before: str = "") -> Iterator[str]:
    for own in sorted(os.listdir(folder)):
        name, ending = os.path.splitext(own)
        if ending == ".py" and name != "__init__":
            yield before + name
        elif not ending and name != "__pycache__":
            yield from _files_in(os.path.join(folder, name), f"{before}{name}.")


for _name in files():
    for _program in _indexed(_name) if _name in INDEX else in_file(_name):
        add(_program)
