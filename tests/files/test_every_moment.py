"""A process that ends at any of the system calls with which it writes: the old output or the new one, or none."""

import json
import os
from pathlib import Path

import pytest
from platforms import PLATFORMS

pytestmark = pytest.mark.slow

PYTHONPATH = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1])))
SCRIPT = Path(__file__).with_name("every_moment.py")
# By kind of output: what may be under its name, whenever the process ends.
WHOLE = {"a file": {"none", "new"}, "a file again": {"old", "new"},
         "a folder": {"none", "new"}, "a folder again": {"old", "new"}}  # fmt: skip


@pytest.fixture
def end_everywhere(run_process, tmp_path):
    def end(how, platform):
        shown = run_process(SCRIPT, tmp_path, how, platform, PYTHONPATH=PYTHONPATH)
        assert shown.status == 0, shown.stderr
        found = json.loads(shown.stdout)
        assert found.keys() == WHOLE.keys()
        assert all(result["moments"] > 8 for result in found.values())
        return found

    return end


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_kill_leaves_nothing_half_done_and_the_next_run_leaves_nothing(platform, end_everywhere):
    _, exchanges, locks = PLATFORMS[platform]
    for kind, result in end_everywhere("killed", platform).items():
        shown = {left.split(" ")[0] for left in result["left"]}
        if kind == "a folder again" and not exchanges:
            moved = {left for left in result["left"] if left.startswith("none")}
            assert moved == {"none .partial .partial.lock .partial.old"}
            shown -= {"none"}
        assert shown == WHOLE[kind]
        if locks:
            assert result["next"] == {"new": result["moments"]}
            assert result["notes"] == 0
        else:
            assert all(state.startswith("new") for state in result["next"])
            assert result["notes"] == sum(count for left, count in result["left"].items() if " " in left)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_an_interrupt_leaves_nothing_at_all(platform, end_everywhere):
    for kind, result in end_everywhere("interrupted", platform).items():
        assert set(result["left"]) <= WHOLE[kind]
        assert result["next"] == {"new": result["moments"]}
        assert result["notes"] == 0
