"""Plain English in pages, help texts and docstrings: few relative "what", few nominal clauses, short sentences.

A page is read without its code, tables and comments, and a docstring without indented lines; the words in backticks
count as one. Each package keeps the budget by itself, and so do all pages together.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHAT = re.compile(r"\bwhat\b(?! (?:if|about)\b)", re.IGNORECASE)
CLAUSES = re.compile(r"\b(?:that which|those that|the one that|of which|whose|wherein)\b", re.IGNORECASE)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# How many words a sentence may have, and which share of the sentences may have more than the first number.
LONG, LONGEST, LONG_SHARE = 25, 40, 0.08
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "integrations").glob("*/README.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
]
# The packages and the folders of `lora_inspect`; its own files and those of `networks` are one each.
PACKAGES = sorted(
    {
        "/".join(path.relative_to(ROOT).parts[:-1][:2])
        for package in ("lora_inspect", "networks", "integrations")
        for path in (ROOT / package).rglob("*.py")
    }
)


@dataclass
class Prose:
    """Counts of one page or package, and its sentences that are too long."""

    words: int = 0
    what: list[str] = field(default_factory=list)
    clauses: list[str] = field(default_factory=list)
    sentences: int = 0
    long: list[str] = field(default_factory=list)

    def add(self, paragraph: str) -> None:
        for sentence in sentences_of(paragraph):
            count = sum(1 for word in sentence.split() if re.search(r"\w", word))
            self.words += count
            self.sentences += 1
            if count > LONG:
                self.long.append(sentence)
            if not sentence.rstrip().endswith("?"):
                self.what += [sentence] * len(WHAT.findall(sentence))
            self.clauses += [sentence] * len(CLAUSES.findall(sentence))

    @property
    def too_long(self) -> list[str]:
        return [one for one in self.long if len(re.findall(r"\S*\w\S*", one)) > LONGEST]


def sentences_of(paragraph: str) -> list[str]:
    text = re.sub(r"(`+)(.+?)\1", "CODE", paragraph)
    text = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"\b(e\.g|i\.e|etc|vs)\.", r"\1", text).replace("*", "")
    return [one for one in re.split(r"(?<=[.!?])[)\"]*\s+(?=[A-Z0-9\"(])", text) if one.strip()]


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs, list items and headings of Markdown, without code and tables."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^ *(```+|~~~+).*?^ *\1", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.) )|\n(?=#)|(?<=\n)(?=\|)", text):
        lines = [line.strip().lstrip("#>-*+ ") for line in block.splitlines() if not line.lstrip().startswith("|")]
        if joined := " ".join(line for line in lines if line):
            yield joined


def of_page(path: Path) -> Prose:
    found = Prose()
    for paragraph in paragraphs(path.read_text(encoding="utf-8")):
        found.add(paragraph)
    return found


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def of_package(name: str) -> Prose:
    found = Prose()
    for path in sorted((ROOT / name).glob("*.py" if "/" not in name else "**/*.py")):
        for text in docstrings(path):
            for paragraph in paragraphs(re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)):
                found.add(paragraph)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_has_short_sentences(path):
    prose = of_page(path)
    assert prose.too_long == []
    # One long sentence of a short page is a large share of it.
    assert len(prose.long) <= max(3, LONG_SHARE * prose.sentences), prose.long


def test_pages_have_few_nominal_clauses():
    pages = [of_page(path) for path in PAGES]
    words = sum(page.words for page in pages)
    what = [one for page in pages for one in page.what]
    clauses = [one for page in pages for one in page.clauses]
    assert 1000 * len(what) <= words, what
    assert 1000 * len(clauses) <= 3 * words, clauses


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_of_a_package_have_few_nominal_clauses(package):
    prose = of_package(package)
    thousands = max(1.0, prose.words / 1000)
    assert len(prose.what) <= 2 * thousands, prose.what
    assert len(prose.clauses) <= 3 * thousands, prose.clauses


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_of_a_package_have_short_sentences(package):
    prose = of_package(package)
    assert prose.too_long == []
    assert len(prose.long) <= max(3, LONG_SHARE * prose.sentences), prose.long


def test_what_counts():
    prose = Prose()
    for paragraph in paragraphs(
        "# What is it?\n\nIt is what was read. Say `what` and what if.\n\n```sh\nwhat\n```\n\n| what |\n\n"
        "- A file whose\n  key."
    ):
        prose.add(paragraph)
    assert prose.what == ["It is what was read."]
    assert prose.clauses == ["A file whose key."]
    assert prose.sentences == 4


def test_a_sentence_of_41_words_is_too_long():
    prose = Prose()
    prose.add(f"A {' '.join(['word'] * 39)}. A {' '.join(['word'] * 40)}.")
    assert (len(prose.long), len(prose.too_long)) == (2, 1)


def replaced_words() -> list[str]:
    """The words of the glossary's table that have no other use, which the table would name behind a comma."""
    table = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition("# Replaced words")[2]
    cells = re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", table, re.MULTILINE)[1:]
    return [word for cell in cells if ", of " not in cell for word in cell.split(", ")]


def test_the_glossary_has_words_to_replace():
    assert {"mend", "anew", "beside", "told"} <= set(replaced_words())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_has_no_replaced_word(path):
    words = re.compile(rf"(?<!-)\b(?:{'|'.join(replaced_words())})\b(?!-)", re.IGNORECASE)
    text = path.read_text(encoding="utf-8").partition("# Replaced words")[0]
    found = [one for paragraph in paragraphs(text) for one in sentences_of(paragraph) if words.search(one)]
    assert found == []
