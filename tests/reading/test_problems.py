"""The registry of problems: a file that has each of them, what is told of it, and its row in the documentation."""

import re
from pathlib import Path

import pytest
from adapters import loras
from problem_toys import TOYS

from lora_inspect.reading.model.evidence import ERROR, NOTE, WARNING, Problem, RawProblem
from lora_inspect.reading.problems import PROBLEMS, Entry, RareLook, find_problems
from lora_inspect.reading.state import Reading

PAGE = Path(__file__).parents[2] / "docs" / "problems.md"
ENTRIES = {entry.code: entry for entry in PROBLEMS}


@pytest.mark.parametrize("code", ENTRIES)
def test_every_problem_is_found_in_a_file_that_has_it(code, read, write_safetensors):
    assert code in TOYS, f"add a file that has {code} to TOYS of tests/problem_toys.py"
    toy = dict(TOYS[code])
    if beside := toy.pop("beside", None):
        write_safetensors(*beside)
    found = [problem for problem in read(**toy).problems if problem.code == code]
    assert {problem.severity for problem in found} == {ENTRIES[code].severity}
    assert all("; " in problem.message for problem in found if problem.severity == ERROR), "the way out"


def test_a_file_without_problems_has_none(read):
    assert read(loras()).problems == ()


def test_every_problem_stands_in_the_documentation_and_no_other():
    rows = re.findall(r"^\| `([a-z-]+)` \| (error|warning|note) \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert rows == [(entry.code, entry.severity) for entry in PROBLEMS], (
        "the rows of the table of problems in docs/problems.md are those of PROBLEMS, in that order"
    )


def test_codes_and_severities_are_those_that_scripts_rely_on():
    assert len(ENTRIES) == len(PROBLEMS)
    assert {entry.severity for entry in PROBLEMS} == {ERROR, WARNING, NOTE}


def entry(code, severity, looks):
    return Entry(code, severity, looks, "It is toyed with.", "Nothing follows.", "Leave it.")


RARE = {look.name: look for entry in PROBLEMS for look in entry.looks if isinstance(look, RareLook)}


@pytest.mark.parametrize("name", RARE)
def test_a_rare_look_is_there_where_it_is_asked_for(name):
    assert RARE[name].look.__module__ == f"lora_inspect.reading.{RARE[name].file}"


class TestTheRegistry:
    """Entries are told in their order, whoever finds what, and nothing that is found is passed over."""

    @pytest.fixture
    def reading(self):
        return Reading(*[None] * len(Reading._fields))

    def test_an_entry_is_all_that_a_new_problem_takes(self, reading):
        def look(reading):
            yield RawProblem("new", "it is new", ("key",))

        assert find_problems(reading, (entry("new", WARNING, (look,)),)) == (
            Problem("new", WARNING, "it is new", ("key",)),
        )

    def test_problems_are_told_in_the_order_of_their_entries(self, reading):
        def look(reading):
            yield RawProblem("second", "b")
            yield RawProblem("first", "a")

        def look_again(reading):
            yield RawProblem("first", "c")

        entries = (entry("first", ERROR, (look, look_again)), entry("second", NOTE, (look,)))
        assert [problem.message for problem in find_problems(reading, entries)] == ["a", "c", "b"]

    def test_a_finding_without_an_entry_is_not_lost(self, reading):
        entries = (entry("first", ERROR, (lambda reading: [RawProblem("other", "a")],)),)
        with pytest.raises(KeyError, match="other"):
            find_problems(reading, entries)
