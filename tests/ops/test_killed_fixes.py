"""A `check --fix` that is killed at any moment: no half output, and the next run removes the temporary files."""

import json
import os
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_fixes.py")
PYTHONPATH = os.pathsep.join(map(str, Path(__file__).parents[1:3]))

pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"), pytest.mark.slow]


def test_next_run_removes_leftovers_of_every_kill(run_process, fixtures, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    file = fixtures / "synthetic" / "bf16_alpha_and_flags.safetensors"
    shown = run_process(SCRIPT, place, file, PYTHONPATH=PYTHONPATH)
    assert shown.status == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert len(found) > 10
    assert {left for left, *_ in found} == {"none", "new"}
    assert [".partial", ".partial.lock"] in [beside for _, beside, *_ in found]
    assert {(after, *beside) for *_, after, beside in found} == {("new",)}
