"""The registry of programs that load adapters.

Files in `known/` and its folders register a record `PROGRAM`, or several as `PROGRAMS`. A file in a folder is named
with a dot: `trainers/diffsynth.py` is "trainers.diffsynth".

`info` pays for every import, and few programs load a given file. `program_index.py`, which is written from the records,
says which files a program loads. The program's own file is imported when one of its loaders is needed, or at once if
the index lacks it.
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
    """Add a program to `compat`, `convert --to` and `info`.

    Raises ValueError if its name is taken.
    """
    if program.name in PROGRAMS:
        raise ValueError(f"there is a program called {program.name} already")
    PROGRAMS[program.name] = program


@contextmanager
def added(program: Program) -> Iterator[None]:
    """Register a program while the block runs."""
    add(program)
    try:
        yield
    finally:
        del PROGRAMS[program.name]


def by_name(name: str) -> Program:
    """Return the program called `name`. Raises KeyError."""
    return PROGRAMS[name]


def in_file(name: str) -> Sequence[Program]:
    """Return the programs of one file of `known/`; a file of shared rules has none."""
    module = import_module(f"{__name__}.known.{name}")
    return getattr(module, "PROGRAMS", None) or [*filter(None, [getattr(module, "PROGRAM", None)])]


def _loaders_in(file: str, at: int) -> Sequence[Loader]:
    return in_file(file)[at].loaders


def _indexed(file: str) -> Iterator[Program]:
    """Yield the programs of a file from the index, without an import of the file."""
    for at, (name, title, version, schemes, uniform, sets_multiplier, ran, distributions, reads) in enumerate(
        INDEX[file]
    ):
        make: Callable[[], Sequence[Loader]] = partial(_loaders_in, file, at)
        loaders = Loaders(tuple(Reads(*one) for one in reads), make)
        yield Program(name, title, version, loaders, schemes, uniform, sets_multiplier, ran, distributions)


def files() -> Iterator[str]:
    """Return the files of `known/` and of its folders."""
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
