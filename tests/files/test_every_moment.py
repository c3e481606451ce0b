"""A process that ends at any of the system calls with which it writes: the old output or the new one, or none."""

import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("every_moment.py")
# By kind of output: what may be under its name, whenever the process ends.
WHOLE = {"a file": {"none", "new"}, "a file again": {"old", "new"},
         "a folder": {"none", "new"}, "a folder again": {"old", "new"}}  # fmt: skip
# Systems by what they lack.
LINUX: list[str] = []
NO_EXCHANGE = ["ctypes.*"]
NO_LINKS = ["os.link"]
BARE = ["ctypes.*", "os.link", "os.O_NOFOLLOW", "os.O_NONBLOCK"]


@pytest.fixture
def end_everywhere(run_process, tmp_path):
    def end(how, without):
        shown = run_process(SCRIPT, tmp_path, how, *without)
        assert shown.status == 0, shown.stderr
        found = json.loads(shown.stdout)
        assert found.keys() == WHOLE.keys()
        assert all(result["moments"] > 8 for result in found.values())
        return found

    return end


@pytest.mark.parametrize("without", [LINUX, NO_EXCHANGE, NO_LINKS, BARE], ids=" ".join)
def test_a_kill_leaves_nothing_half_done_and_the_next_run_leaves_nothing(without, end_everywhere):
    for kind, result in end_everywhere("killed", without).items():
        shown = {left.split(" ")[0] for left in result["left"]}
        if kind == "a folder again" and "ctypes.*" in without:
            moved = {left for left in result["left"] if left.startswith("none")}
            assert moved == {"none .partial .partial.lock .partial.old"}
            shown -= {"none"}
        assert shown == WHOLE[kind]
        assert result["next"] == {"new": result["moments"]}
        assert result["notes"] == 0


@pytest.mark.parametrize("without", [LINUX, NO_EXCHANGE, NO_LINKS, BARE], ids=" ".join)
def test_an_interrupt_leaves_nothing_at_all(without, end_everywhere):
    for kind, result in end_everywhere("interrupted", without).items():
        assert set(result["left"]) <= WHOLE[kind]
        assert result["next"] == {"new": result["moments"]}


def test_without_locks_the_next_run_names_what_a_kill_has_left(end_everywhere):
    for kind, result in end_everywhere("killed", ["fcntl.*"]).items():
        assert {left.split(" ")[0] for left in result["left"]} == WHOLE[kind]
        assert all(state.startswith("new") for state in result["next"])
        assert result["notes"] == sum(count for left, count in result["left"].items() if " " in left)


def test_without_locks_an_interrupt_leaves_nothing_at_all(end_everywhere):
    for kind, result in end_everywhere("interrupted", ["fcntl.*"]).items():
        assert set(result["left"]) <= WHOLE[kind]
        assert result["notes"] == 0
