"""What has broken the program before, or is made to, through every verb."""

import shlex
from pathlib import Path

import pytest

from fuzz import known
from fuzz.case import NETWORKS, Case, case_from_json
from fuzz.oracle import examine

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))


def wrongs(case: Case) -> list[str]:
    return [f"{shlex.join(case.command)}: {kind}: {says}" for kind, says in examine(case).violations]


@pytest.mark.parametrize("name", known.REFUSED)
def test_a_file_that_must_be_refused(name):
    ended = [(case, examine(case)) for case in known.cases(name)]
    assert [f"{shlex.join(case.command)}: {wrong}" for case, found in ended for wrong in found.violations] == []
    statuses = {case.command: found.status for case, found in ended if case.target != NETWORKS}
    # 3 where there is no file to refuse.
    assert {command: status for command, status in statuses.items() if status not in (1, 3)} == {}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_case_that_was_found(path):
    assert wrongs(case_from_json(path.read_text(), path.stem)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", known.ODD)
def test_a_file_that_is_read_or_refused(name):
    assert [wrong for case in known.cases(name) for wrong in wrongs(case)] == []
