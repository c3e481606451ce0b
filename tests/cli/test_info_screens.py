"""The screens of real files, letter by letter, and what every screen keeps to.

UPDATE_SCREENS=1 writes what is shown now into tests/cli/screens, to be read and committed.
"""

import os
from pathlib import Path

import pytest
from screens import EVERY, REAL

from lora_inspect.printable import printable, width

SCREENS = Path(__file__).parent / "screens"


@pytest.fixture
def show(run, tmp_path, monkeypatch):
    """`show(name, *options)`: the screen of such a file, called by its bare name, in a pipe."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def show_file(name, *options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        path = EVERY[name](folder)
        monkeypatch.chdir(folder)
        shown = run("info", path.relative_to(folder), *options)
        assert (shown.status, shown.stderr) == (0, "")
        return shown.stdout

    return show_file


@pytest.mark.parametrize("name", EVERY)
def test_the_screen_of_a_file_is_the_one_that_was_read_and_found_good(name, show):
    shown, kept = show(name), SCREENS / f"{name}.txt"
    if os.environ.get("UPDATE_SCREENS"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(shown, encoding="utf-8")
    assert shown == kept.read_text(encoding="utf-8")


def test_every_screen_is_that_of_a_file_and_fifteen_are_of_real_ones():
    assert {path.stem for path in SCREENS.glob("*.txt")} == set(EVERY)
    assert len(REAL) >= 15


@pytest.mark.parametrize("name", EVERY)
def test_lines_fit_80_columns_whatever_is_asked_for(name, show):
    shown = show(name, "--why", "--modules", "--metadata")
    lines = shown.splitlines()
    assert shown == "".join(f"{line}\n" for line in lines)
    assert all(line == printable(line) for line in lines)
    assert [line for line in lines if width(line) > 80 and " lora-inspect " not in line] == []
