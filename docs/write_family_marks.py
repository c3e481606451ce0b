"""Writes `lora_inspect/architectures/family_marks.py`, by which a file's families are found, from the families.

    python docs/write_family_marks.py

A family that is not in the table works all the same: its file is imported whenever an adapter is read.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lora_inspect.architectures import every, marks_of  # noqa: E402

TABLE = ROOT / "lora_inspect" / "architectures" / "family_marks.py"
HEAD = '''"""Facts of families that need no import of their files, written by `python docs/write_family_marks.py`."""

from collections.abc import Mapping

'''
WIDTH = 119
# What is left of a line behind the name of a family.
LONGEST = 100


def quoted(text: str) -> str:
    """The text as the formatter has it."""
    return f'"{text}"'


def mapping(name: str, value: str, entries: Iterable[tuple[str, str]]) -> str:
    """A table by the names of families."""
    lines = "".join(f"    {quoted(family)}: {entry},\n" for family, entry in entries)
    return f"{name}: Mapping[str, {value}] = {{\n{lines}}}\n"


def words(names: Iterable[str]) -> str:
    """A tuple."""
    found = [*map(quoted, names)]
    line = f"({', '.join(found)}{',' if len(found) == 1 else ''})"
    return line if len(line) < LONGEST else "(\n" + "".join(f"        {one},\n" for one in found) + "    )"


def table() -> str:
    """The whole file."""
    marks = {family.name: marks_of(family) for family in every()}
    paths = ((name, f'"""\n{fill(own.paths, WIDTH)}\n"""') for name, own in marks.items())
    named = ((name, words(own.metadata_names)) for name, own in marks.items() if own.metadata_names)
    above = ((name, quoted(own.descends_from)) for name, own in marks.items() if own.descends_from)
    return (
        HEAD
        + mapping("DESCENDS_FROM", "str", above)
        + mapping("METADATA_NAMES", "tuple[str, ...]", named)
        + "# The marks of the paths of all layouts.\n"
        + mapping("PATHS", "str", paths)
    )


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
