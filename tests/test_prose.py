"""Prose that reads as plain English: no folder gains sentences with a relative "what", as "what is read" for a noun."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RELATIVE = re.compile(r"\b[Ww]hat (?:is|was|has|the|are|were|an?|it|they|its|this|no|else|each|one)\b(?![^.?!\n]*\?)")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# How many a folder may have: in docstrings, or in Markdown pages outside of code. Lower a number when you remove some.
MOST = {
    ".": 1,
    "docs": 2,
    "lora_inspect": 9,
    "lora_inspect/algorithms": 62,
    "lora_inspect/algorithms/on_demand": 67,
    "lora_inspect/architectures": 19,
    "lora_inspect/checking": 7,
    "lora_inspect/converting": 18,
    "lora_inspect/converting/output": 15,
    "lora_inspect/converting/steps": 11,
    "lora_inspect/converting/target": 16,
    "lora_inspect/editing": 9,
    "lora_inspect/matching": 19,
    "lora_inspect/maths": 29,
    "lora_inspect/merging": 56,
    "lora_inspect/merging/jobs": 22,
    "lora_inspect/programs": 54,
    "lora_inspect/programs/known": 16,
    "lora_inspect/scanning": 1,
    "lora_inspect/stores": 35,
    "lora_inspect/verifying": 24,
    "networks": 8,
    "networks/files": 22,
    "networks/kernels": 10,
    "networks/modules": 16,
    "networks/network": 13,
}
# By how many a number may be too high.
LEEWAY = 3


class Found(NamedTuple):
    """A line with a relative "what"."""

    path: Path
    line: int
    text: str


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Each docstring, with the line that it begins in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            yield node.body[0].lineno, node.body[0].value.value


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The page with blank lines for those of its code, and the number of its first line."""
    text = path.read_text(encoding="utf-8")
    yield 1, re.sub(r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def found_in(path: Path) -> list[Found]:
    """Every relative "what" of a source file's docstrings, or of a page."""
    found = []
    for first, text in docstrings(path) if path.suffix == ".py" else prose(path):
        lines = text.splitlines()
        for match in RELATIVE.finditer(text):
            number = text.count("\n", 0, match.start())
            found.append(Found(path, first + number, lines[number].strip()))
    return found


def by_folder() -> dict[str, list[Found]]:
    """Those of each folder of the packages, of `integrations` and `docs`, and of the pages beside them."""
    packages = ("lora_inspect", "networks", "integrations")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    pages = [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "integrations").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
    folders: dict[str, list[Found]] = {}
    for path in (*sources, *pages):
        folders.setdefault(path.relative_to(ROOT).parent.as_posix(), []).extend(found_in(path))
    return folders


def newest(found: list[Found]) -> Found:
    """The line that was written last, as git knows it; the last one where there is no git."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return found[-1]

    def written(one: Found) -> int:
        command = ["git", "blame", "--porcelain", f"-L{one.line},{one.line}", "--", str(one.path)]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        time = re.search(r"^committer-time (\d+)", told, re.MULTILINE)
        return int(time[1]) if time else 0

    return max(reversed(found), key=written)


def test_no_folder_gains_a_relative_what():
    folders = by_folder()
    wrong = [f"{folder}: no such folder; delete its number in MOST" for folder in MOST.keys() - folders.keys()]
    for folder, found in folders.items():
        count, most = len(found), MOST.get(folder, 0)
        if count > most:
            path, line, text = newest(found)
            at = f"{path.relative_to(ROOT)}:{line}"
            wrong.append(f'{folder}: {count} times "what is", "what the" or the like, {most} at most; {at}: {text}')
        elif most > count + LEEWAY:
            wrong.append(f"{folder}: {count}; lower its number in MOST, which is {most}")
    assert wrong == []


def test_a_relative_what_is_found_in_docstrings_and_pages(tmp_path):
    source, page = tmp_path / "source.py", tmp_path / "page.md"
    source.write_text('"""What is read.\n\nAnd what the file\nsays."""\nX = "what is"\ndef f():\n    """What a."""\n')
    assert [one.line for one in found_in(source)] == [1, 3, 7]
    page.write_text("```sh\nwhat is\n```\nWhat is it? Say what\nis meant, what it is.\nWhat if, whatever the.\n")
    assert found_in(page) == [Found(page, 5, "is meant, what it is.")]
