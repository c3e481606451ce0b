"""Writes `lora_inspect/programs/program_index.py`, which says what programs there are, from their files.

    python docs/write_program_index.py

A file that is not in the table works all the same: it is imported whenever programs are asked.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lora_inspect import programs as registry  # noqa: E402
from lora_inspect.programs.record import Program  # noqa: E402

TABLE = ROOT / "lora_inspect" / "programs" / "program_index.py"
HEAD = '''"""The programs of each file of `known/`, written by `python docs/write_program_index.py`."""

from collections.abc import Mapping
from typing import Any

# The programs of each file, none of most. Of each the name, the title, the version, the schemes, whether it is uniform,
# whether it sets the strength, the day of its last run, the versions of its packages, and of each loader the families,
# the marks, and whether all keys have one of them.
INDEX: Mapping[str, tuple[tuple[Any, ...], ...]] = '''
WIDTH = 120
STEP = 4


def row(program: Program) -> tuple[object, ...]:
    """What the table has of a program."""
    reads = tuple((tuple(one.families), tuple(one.marks), one.all_marked) for one in program.loaders)
    names = (program.name, program.title, program.version, dict(program.schemes))
    said = (program.uniform, program.sets_multiplier, program.ran, dict(program.distributions))
    return (*names, *said, reads)


def laid_out(value: object, room: int, depth: int = 0) -> str:
    """A value as the formatter has it, on one line where there is room for so many letters."""
    line = _on_one_line(value)
    if len(line) <= room or not isinstance(value, (tuple, dict)):
        return line
    within, blank = depth + STEP, " " * (depth + STEP)
    if isinstance(value, dict):
        named = [(f"{_on_one_line(key)}: ", one) for key, one in value.items()]
    else:
        named = [("", one) for one in value]
    left = WIDTH - within - len(",")
    lines = [f"{blank}{name}{laid_out(one, left - len(name), within)},\n" for name, one in named]
    start, end = "{}" if isinstance(value, dict) else "()"
    return f"{start}\n{''.join(lines)}{' ' * depth}{end}"


def _on_one_line(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_on_one_line(key)}: {_on_one_line(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_on_one_line, value))}{',' if len(value) == 1 else ''})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def table() -> str:
    """The whole file."""
    programs = {file: tuple(map(row, registry.in_file(file))) for file in registry.files()}
    return f"{HEAD}{laid_out(programs, 0)}\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
