"""The Makefile: its pieces are what .ci/run asks for."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = ("format", "lint", "types", "contract", "docs", "pages", "quick", "tests", "slow", "exhaustive", "all")


@pytest.fixture
def dry():
    """`dry("lint")`: the commands that make would run."""
    if not shutil.which("make"):
        pytest.skip("there is no make")

    def commands(target):
        ended = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
        assert not ended.stderr
        return ended.stdout.splitlines()

    return commands


@pytest.mark.parametrize("target", TARGETS)
def test_every_piece_is_there_and_names_files_that_are(target, dry):
    commands = dry(target)
    assert commands
    for path in re.findall(r"(?<![\w./])(?:tests|docs)/\S+\.py", "\n".join(commands)):
        assert (ROOT / path).exists(), path


def test_lint_and_types_are_those_of_the_checks(dry):
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace('"$bin/ruff"', ".venv/bin/ruff")
    for command in dry("lint"):
        assert f"\n  {command}\n" in checks
    systems = re.findall(r"mypy --platform (\w+)", checks)
    systems += re.search(r"for system in (.*); do\n +\S+ --platform \"\$system\"", checks)[1].split()
    assert dry("types") == [f".venv/bin/mypy --platform {system}" for system in systems]


def test_all_has_every_piece_but_those_that_write(dry):
    together = dry("all")
    for target in ("lint", "types", "contract", "docs", "tests", "slow"):
        assert set(dry(target)) <= set(together), target


def test_pages_writes_every_page_that_is_written():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for script in (ROOT / "docs").glob("write_*.py"):
        assert f"docs/{script.name}\n" in makefile
