"""The registry of `check`: a file that has each problem, files that are only like it, and its page."""

import importlib.util
from pathlib import Path

import pytest
from adapters import loras
from problem_toys import ALSO, LINT_TOYS, NEAR, TOYS

from lora_inspect.checking.rules import BY_CODE, RULES, find_problems
from lora_inspect.ops.check import check
from lora_inspect.reading.model.evidence import ERROR, NOTE, WARNING
from lora_inspect.reading.problems import PROBLEMS

ROOT = Path(__file__).parents[2]
ALL_TOYS = TOYS | LINT_TOYS
OF_READING = {entry.code for entry in PROBLEMS}
LINTS = [rule.code for rule in RULES if rule.code not in OF_READING]


@pytest.mark.parametrize("code", BY_CODE)
def test_every_problem_is_found_in_a_file_that_has_it(code, write_toy):
    assert code in ALL_TOYS, f"add a file that has {code} to tests/problem_toys.py"
    path, settings = write_toy(ALL_TOYS[code])
    found = [problem for problem in check(path, settings, tensors=True).problems if problem.code == code]
    assert {problem.severity for problem in found} == {BY_CODE[code].severity}
    assert not any(problem.message.endswith(".") for problem in found)


@pytest.mark.parametrize(("code", "toy"), [(code, toy) for code, toys in ALSO.items() for toy in toys])
def test_it_is_found_in_other_files_that_have_it(code, toy, codes):
    assert code in codes(toy)


@pytest.mark.parametrize(("code", "toy"), [(code, toy) for code, toys in NEAR.items() for toy in toys])
def test_what_is_only_like_it_is_no_problem(code, toy, codes):
    assert code not in codes(toy)


def test_every_lint_has_files_that_are_only_like_it():
    assert [code for code in LINTS if not NEAR.get(code)] == []


def test_a_clean_file_has_no_problem(codes):
    assert codes({"tensors": loras(rank=4), "metadata": {"ss_network_dim": "4", "ss_network_alpha": "8.0"}}) == []


def test_what_needs_the_numbers_is_looked_for_only_where_they_are_read(write_toy):
    path, settings = write_toy(LINT_TOYS["not-finite"])
    assert "not-finite" not in {problem.code for problem in check(path, settings).problems}


def test_no_code_has_two_rules_and_every_rule_explains_itself():
    assert len(BY_CODE) == len(RULES)
    assert set(BY_CODE) >= OF_READING
    for rule in RULES:
        assert rule.severity in (ERROR, WARNING, NOTE)
        assert all(
            text.endswith((".", ".'")) and not text[0].isspace() for text in (rule.means, rule.matters, rule.way_out)
        )
        assert rule.code in OF_READING or rule.looks or rule.code == "unreadable"


def test_a_finding_without_a_rule_is_not_lost(write_toy):
    from lora_inspect.checking.subject import Subject
    from lora_inspect.files.checkpoint import open_checkpoint

    path, settings = write_toy(TOYS["unclaimed"])
    with pytest.raises(KeyError, match="unclaimed"):
        list(find_problems(Subject(open_checkpoint(path), settings), tensors=False, rules=()))


def test_the_page_of_checks_is_that_of_the_registry():
    spec = importlib.util.spec_from_file_location("write_checking", ROOT / "docs" / "write_checking.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "checking.md").read_text(encoding="utf-8")
    assert written == module.page(), "run python docs/write_checking.py"
