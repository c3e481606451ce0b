"""Writes `lora_inspect/algorithms/file_index.py`, by which an algorithm's file is found, from the files.

    python docs/write_algorithm_index.py

A file that is not in the table works all the same: it is imported whenever an adapter is read.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lora_inspect import algorithms  # noqa: E402
from lora_inspect.algorithms.record import Algorithm  # noqa: E402

FOLDER = ROOT / "lora_inspect" / "algorithms"
TABLE = FOLDER / "file_index.py"
HEAD = '''"""The file of each algorithm in this folder, written by `python docs/write_algorithm_index.py`."""

from collections.abc import Mapping

'''


def by_file() -> dict[str, Sequence[Algorithm]]:
    """The algorithms of each file in the order in which they are tried."""
    found = {}
    for file in sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__"):
        module = import_module(f"{algorithms.__name__}.{file}")
        found[file] = getattr(module, "ALGORITHMS", None) or [*filter(None, [getattr(module, "ALGORITHM", None)])]
    return found


def inverted(files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The files by what is said of them."""
    found: dict[str, list[str]] = {}
    for file, words in files.items():
        for word in dict.fromkeys(words):
            found.setdefault(word, []).append(file)
    return found


def mapping(name: str, says: str, entries: Mapping[str, Sequence[str]]) -> str:
    """A table of tuples of words."""
    lines = "".join(f"    {quoted(key)}: {words(found)},\n" for key, found in entries.items())
    return f"# {says}\n{name}: Mapping[str, tuple[str, ...]] = {{\n{lines}}}\n"


def quoted(text: str) -> str:
    """The text as the formatter has it."""
    return f'"{text}"'


def words(found: Sequence[str]) -> str:
    """A tuple."""
    return f"({', '.join(map(quoted, found))}{',' if len(found) == 1 else ''})"


def table() -> str:
    """The whole file."""
    files = by_file()
    suffixes = {file: [suffix for one in found for suffix in one.suffixes] for file, found in files.items()}
    types = {file: [one.peft_type for one in found if one.peft_type] for file, found in files.items()}
    options = {file: [one.option_of[1] for one in found if one.option_of] for file, found in files.items()}
    return (
        HEAD
        + mapping("NAMES", "Of each file; without any it has none.", {f: [o.name for o in a] for f, a in files.items()})
        + mapping("SUFFIXES", "The files by the suffixes of their keys.", inverted(suffixes))
        + mapping("TYPES", "The files by a `peft_type`.", inverted(types))
        + mapping("OPTIONS", "The files by the setting of a PEFT config that has tensors be theirs.", inverted(options))
    )


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
