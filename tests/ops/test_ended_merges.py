"""Merges by several threads that are ended, or whose files and disks change under them: whole outputs or none."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging import fold, working_crew
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

SCRIPT = Path(__file__).with_name("ended_merges.py")
# The signals with the statuses of processes that they end.
ENDS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals and no fork"),
    pytest.mark.slow,
]


@pytest.fixture
def end(run_process, tmp_path):
    def run(times, *names):
        shown = run_process(SCRIPT, tmp_path, str(times), *names, PYTHONPATH=str(Path(__file__).parents[2]))
        assert shown.status == 0, shown.stderr
        return json.loads(shown.stdout)

    return run


def test_thirty_kills_leave_no_half_output_and_the_next_run_leaves_nothing_else(end):
    found = end(30, "SIGKILL")
    assert len(found) == 30
    killed = 0
    for _, status, is_there, left, beside, then, then_beside in found:
        killed += status == -signal.SIGKILL
        assert left in ({"old", "new"} if is_there else {"none", "new"})
        assert all(".partial" in name for name in beside)
        assert (then, then_beside) == ("new", [])
    assert killed >= 3


def test_signals_at_any_moment_leave_nothing_at_all(end):
    found = end(24, *ENDS)
    came = 0
    for name, status, is_there, left, beside, then, then_beside in found:
        # Before the command has begun, the signal ends the process as any other.
        assert status in (0, ENDS[name], -getattr(signal, name), 1)
        came += status == ENDS[name]
        assert left == "new" if status == 0 else left in ({"old", "new"} if is_there else {"none", "new"})
        assert beside == []
        assert (then, then_beside) == ("new", [])
    assert came >= 2


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A base whose weights have many blocks, and an adapter for every second of them."""
    (tmp_path / "out").mkdir()
    base, adapter = {}, {}
    for layer in range(6):
        base[f"b.{layer}.q.weight"] = torch.randn(40, 20, generator=torch.Generator().manual_seed(layer))
        if layer % 2:
            name = f"lora_unet_b_{layer}_q"
            adapter |= {f"{name}.lora_down.weight": torch.ones(2, 20), f"{name}.lora_up.weight": torch.ones(40, 2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(adapter, tmp_path / "adapter.safetensors")
    monkeypatch.setattr(working_crew, "computing_threads", lambda most: 3)
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(working_crew, "COPIED_BYTES", 500)
    return tmp_path


def refusal(place):
    plan = plan_merge(str(place / "base.safetensors"), [(str(place / "adapter.safetensors"), 1.0)], MergeOptions())
    with pytest.raises(LoraInspectError) as error:
        merge(plan, str(place / "out" / "merged.safetensors"))
    assert os.listdir(place / "out") == []
    return str(error.value)


def at_call(monkeypatch, name, number, do):
    """Has `do` done before the call of this number."""
    real, calls = getattr(os, name), []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) >= number:
            do()
        return real(*arguments)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("number", [1, 2, 3, 10, 20])
def test_a_disk_that_is_full_at_any_of_the_writes_is_one_sentence(number, place, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    calls = at_call(monkeypatch, "pwrite", number, full)
    said = refusal(place)
    assert said.endswith("lora-inspect cannot write it (No space left on device); free space or choose another place.")
    # Each of the three threads may be at a part of each of the three jobs that are begun before the first one is told
    # to have failed; none begins another.
    assert number <= len(calls) <= number - 1 + 3 * 3


CHANGES = {
    "truncated": lambda base: os.truncate(base, base.stat().st_size - 4),
    "emptied": lambda base: os.truncate(base, 0),
    "replaced": lambda base: (
        base.with_suffix(".new").write_bytes(bytes(10)),
        os.replace(base.with_suffix(".new"), base),
    ),
    "removed": os.unlink,
}


@pytest.mark.parametrize("number", [2, 10, 20])
@pytest.mark.parametrize("change", CHANGES)
def test_a_base_that_changes_while_blocks_are_written_is_refused(change, number, place, monkeypatch):
    base, done = place / "base.safetensors", []

    def once():
        if not done:
            done.append(change)
            CHANGES[change](base)

    at_call(monkeypatch, "pwrite", number, once)
    assert refusal(place) == f"{base}: it changed while it was read; run the command again."
    assert done
