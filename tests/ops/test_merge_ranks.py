"""A base that processes of torchrun merge together: the bytes of one process, and no output where one of them dies."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bases import content, write_adapter, write_base

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="torchrun's processes are looked for in /proc"),
    pytest.mark.slow,
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_base("base")
    write_adapter("lora")
    # A process of its own as well: the one of the tests may have other products.
    command = [sys.executable, "-m", "lora_inspect", "merge", "base", "lora", "-o", "one"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, check=True)
    return tmp_path


def started(count, *words, program=("-m", "lora_inspect")):
    """torchrun with `count` processes of ours."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    os.makedirs("logs", exist_ok=True)
    environment["TMPDIR"] = os.path.abspath("logs")  # torchrun leaves its own there
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *program, *words],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def ended(process):
    """Its status, results and our own sentences, without what torchrun says."""
    printed, said = process.communicate(timeout=120)
    return process.returncode, printed, [line for line in said.splitlines() if line.startswith(("Error:", "Note:"))]


MERGE = ("merge", "base", "lora", "-o", "out")


@pytest.mark.numeric
@pytest.mark.parametrize("count", [2, 6])
def test_any_number_of_processes_gives_what_one_gives(count, place):
    status, printed, said = ended(started(count, *MERGE))
    assert (status, said) == (0, [])
    assert printed.splitlines()[0] == "merged 11 modules (lora at 1) into out"
    assert printed.count("merged") == 1
    assert content("out") == content("one")
    assert not os.path.exists("out.parts")


def test_what_all_refuse_is_told_once(place):
    os.mkdir("out")
    Path("out/notes.txt").touch()
    status, printed, said = ended(started(2, *MERGE))
    assert (status, printed) == (1, "")
    assert said == ["Error: out: it exists; choose another output or add --force."]


@pytest.mark.parametrize("words", [("--shard", "1/2"), ("--no-such-option",)])
def test_wrong_usage_is_told_by_the_first_alone(words, run_process):
    others = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    first, second = (run_process("-m", "lora_inspect", *MERGE, *words, RANK=rank, **others) for rank in "01")
    assert (first.status, second.status) == (2, 2)
    assert first.stderr.count("Error: ") == 1
    assert second.stdout + second.stderr == ""


def test_a_process_that_sees_other_files_is_named_by_the_first(place):
    """Each process is in a folder of its own, where an adapter has the same name."""
    for number in range(2):
        os.mkdir(f"rank{number}")
        write_adapter(f"rank{number}/lora", seed=number)
    merging = f'cd "rank$RANK" && exec {sys.executable} -m lora_inspect merge ../base lora -o ../out'
    process = started(2, "bash", "-c", merging, program=("--no-python",))
    status, printed, said = ended(process)
    assert (status, printed) == (1, "")
    (sentence,) = said
    assert sentence.startswith(
        "Error: process 1: its plan differs from that of the first process: the SHA-256 of the adapter"
    )
    assert sentence.endswith("here; let all machines see the same files.")
    assert not os.path.exists("out")


def test_a_process_that_is_killed_leaves_no_part_of_an_output_and_the_next_run_finishes(place):
    process = started(2, *MERGE)
    victim = None
    while process.poll() is None and not (victim and has_entries()):
        victim = victim or rank_of(process.pid, 1)
    if victim:
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(victim, signal.SIGKILL)
    status, _, _ = ended(process)
    # Killed when all was done, it fails beside a whole output.
    if not os.path.exists("out"):
        assert status
        assert os.path.exists("out.parts")
        status, _, said = ended(started(2, *MERGE))
        assert (status, said) == (0, [])
    assert content("out") == content("one")
    assert status or not os.path.exists("out.parts")


def has_entries():
    try:
        return any(name.endswith(".json") for name in os.listdir("out.parts/entries"))
    except OSError:
        time.sleep(0.001)
        return False


def rank_of(parent, number):
    """The process of this number that torchrun has started."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            status = Path(f"/proc/{name}/stat").read_text()
            environment = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent and f"RANK={number}".encode() in environment:
            return int(name)
    return None
