"""What merge, info and a training step cost against another checkout of this project, run in turn.

    python benchmarks/against.py OTHER [--rounds 10] [--blocks 4] [--rank 64] [--steps 10] [--starts 8]
                                       [--only merge|info|step]

OTHER is the other checkout's folder (`git worktree add OTHER REVISION`). Every round runs each thing once in both
trees, the order turning from round to round; ratios, this tree's over the other's, are taken within a round, and their
medians printed beside the ratio of the minima. Merges are timed by the processor time of one thread and by the peak of
resident memory, commands by processor time, steps (8 layers of 1024, float32, 512 tokens) by that of a worker process
in each tree. Where a process has its memory makes up to 3% of a step, so that the workers are started several times.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from synthetic import write_all

HERE = Path(__file__).resolve().parents[1]
FOLDER = HERE / "fixtures" / "crepe-peft-dora-conv-r4"

# Runs the command line in this process and reports the high-water mark that the system kept of it.
_MEASURED = """
import sys
from lora_inspect.cli import main
try:
    main(sys.argv[1:])
finally:
    print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1], file=sys.stderr)
"""

# Steps of LoRA and DoRA at the word of the parent: a line with all times for a line that is read.
_STEPS = """
import json, sys, time
import torch
from torch import nn
from networks.lora import LoRAModule
torch.set_num_threads(1)
KINDS = {"LoRA": {}, "DoRA": {"use_dora": True}, "RS-LoRA + DoRA": {"use_dora": True, "use_rslora": True}}
input, gradient = torch.randn(8, 64, 1024), torch.randn(8, 64, 1024)
def step(options):
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(8))).requires_grad_(False)
    modules = [LoRAModule("layer", layer, 1.0, 32, 32, **options) for layer in base]
    for module in modules:
        module.apply_to()
    optimizer = torch.optim.AdamW([parameter for module in modules for parameter in module.parameters()], lr=1e-5)
    def run():
        start = time.process_time()
        base(input.detach().requires_grad_()).backward(gradient)
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start
    return run
steps = {kind: step(options) for kind, options in KINDS.items()}
for run in (*steps.values(), *steps.values()):
    run()
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps({kind: run() for kind, run in steps.items()}), flush=True)
"""

Found = dict[str, float]
Pairs = dict[str, list[tuple[float, float]]]


def processor_seconds(command: list[str], tree: Path) -> tuple[float, str]:
    """Seconds that the command's process worked, and the last line of what it said on stderr."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tree)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, (done.stderr.splitlines() or [""])[-1]


def merge(tree: Path, scratch: str, files: tuple[str, str, str]) -> Found:
    base, lora, dora = files
    found = {}
    for name, adapter in (("LoRA", lora), ("DoRA", dora)):
        out = os.path.join(scratch, "out.safetensors")
        command = [sys.executable, "-c", _MEASURED, "merge", base, adapter, "-o", out]
        seconds, peak = processor_seconds(command, tree)
        os.unlink(out)
        found |= {f"merge {name}, seconds": seconds, f"merge {name}, peak MB": int(peak) / 1000}
    return found


def info(tree: Path) -> Found:
    program = [sys.executable, "-m", "lora_inspect"]
    commands = {
        "--help": [*program, "--help"],
        "info": [*program, "info", str(FOLDER)],
        "info --json": [*program, "info", "--json", str(FOLDER)],
    }
    return {f"{name}, seconds": processor_seconds(command, tree)[0] for name, command in commands.items()}


def worker(tree: Path) -> Callable[[], Found]:
    """Asks a process in `tree` for one training step of each kind."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", _STEPS], stdin=-1, stdout=-1, text=True, cwd=tree, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to, back = process.stdin, process.stdout
    back.readline()

    def ask() -> Found:
        print(file=to, flush=True)
        return {f"step {kind}, seconds": seconds for kind, seconds in json.loads(back.readline()).items()}

    return ask


def compare(here: Callable[[], Found], other: Callable[[], Found], rounds: int) -> Pairs:
    """What both took in every round, by name."""
    found: Pairs = {}
    for turn in range(rounds + 1):
        if turn % 2:
            theirs, ours = other(), here()
        else:
            ours, theirs = here(), other()
        if turn:  # The first fills the caches.
            for name, value in ours.items():
                found.setdefault(name, []).append((value, theirs[name]))
    return found


def show(found: Pairs) -> None:
    for name, pairs in found.items():
        ratios = [one / two for one, two in pairs]
        minima = min(one for one, _ in pairs), min(two for _, two in pairs)
        print(
            f"{name:24s} {statistics.median(ratios):6.3f} of the other (minima {minima[0] / minima[1]:.3f}: "
            f"{minima[0]:.4g} to {minima[1]:.4g})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--only", choices=("merge", "info", "step"))
    arguments = parser.parse_args()
    other = arguments.other.resolve()
    if arguments.only in (None, "info"):
        show(compare(lambda: info(HERE), lambda: info(other), 2 * arguments.rounds))
    if arguments.only in (None, "step"):
        steps: Pairs = {}
        for _ in range(arguments.starts):
            for name, pairs in compare(worker(HERE), worker(other), arguments.steps).items():
                steps.setdefault(name, []).extend(pairs)
        show(steps)
    if arguments.only in (None, "merge"):
        with tempfile.TemporaryDirectory() as scratch:
            files = write_all(scratch, arguments.blocks, arguments.rank)
            show(compare(lambda: merge(HERE, scratch, files), lambda: merge(other, scratch, files), arguments.rounds))


if __name__ == "__main__":
    main()
