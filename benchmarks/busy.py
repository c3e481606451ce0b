"""What a busy neighbour costs: merge, convert and a training step while another process keeps one core busy.

    python benchmarks/busy.py [--rounds 3] [--blocks 8] [--rank 64] [--folder FOLDER]

Every round runs each of them with libgomp's own setting (a thread that waits looks 300,000 times before it sleeps)
and with ours, on a quiet machine and beside the neighbour, in an order that rotates: wall and CPU seconds of the
whole process (of the training steps alone). Prints the medians, and the ratios of busy to quiet. Exits with 1 where
one of ours is above the limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from synthetic import write_all

LIMIT = 2.2
SETTINGS: dict[str, dict[str, str]] = {"libgomp's": {"GOMP_SPINCOUNT": "300000"}, "ours": {}}

# Steps over a chain of Linear layers, whose seconds are printed: the start of Python and torch is no part of them.
_STEPS = """
import sys, time
import networks.lora as lora
import torch
torch.manual_seed(0)
dora = sys.argv[1] == "DoRA"
layers = [torch.nn.Linear(1024, 1024) for _ in range(8)]
model = torch.nn.Sequential(*layers).requires_grad_(False)
modules = [lora.LoRAModule("layer", layer, 1.0, 32, 32, use_dora=dora) for layer in layers]
for module in modules:
    module.apply_to()
optimizer = torch.optim.AdamW([parameter for module in modules for parameter in module.parameters()], lr=1e-5)
input, gradient = torch.randn(8, 64, 1024), torch.randn(8, 64, 1024)
def step():
    model(input.detach().requires_grad_()).backward(gradient)
    optimizer.step()
    optimizer.zero_grad()
for _ in range(3):
    step()
wall, cpu = time.perf_counter(), time.process_time()
for _ in range(20):
    step()
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """A process that keeps one core busy."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command, or those that it prints of a part of itself."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, *command], env=inherited | environment, check=True, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - start, os.times()
    if command[0] == "-c":
        wall, cpu = map(float, done.stdout.split())
        return wall, cpu
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def commands(folder: str, blocks: int, rank: int) -> dict[str, list[str]]:
    base, lora, dora = write_all(folder, blocks, rank)
    out = ["-o", os.path.join(folder, "out.safetensors"), "--force"]
    program = ["-m", "lora_inspect"]
    few, _, small = write_all(os.path.join(folder, "few"), 1, 16)
    return {
        "merge LoRA": [*program, "merge", base, lora, *out],
        "merge DoRA": [*program, "merge", base, dora, *out],
        "convert --base": [*program, "convert", small, "--base", few, "--rank", "16", "--allow-loss", *out],
        "train LoRA": ["-c", _STEPS, "LoRA"],
        "train DoRA": ["-c", _STEPS, "DoRA"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--folder", help="keep the synthetic files here and use them again")
    arguments = parser.parse_args()
    found: dict[tuple[str, str, bool], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or scratch
        os.makedirs(os.path.join(folder, "few"), exist_ok=True)
        runs = commands(folder, arguments.blocks, arguments.rank)
        cases = [(what, setting, busy) for what in runs for busy in (False, True) for setting in SETTINGS]
        for turn in range(arguments.rounds):
            for what, setting, busy in cases[turn:] + cases[:turn]:
                with neighbour(busy):
                    found[what, setting, busy].append(measured(runs[what], SETTINGS[setting]))
    worst = 0.0
    for what in runs:
        for setting in SETTINGS:
            row: dict[str, Any] = {"what": what, "setting": setting}
            for busy, state in ((False, "quiet"), (True, "busy")):
                walls, cpus = zip(*found[what, setting, busy], strict=True)
                row |= {f"{state}_wall": statistics.median(walls), f"{state}_cpu": statistics.median(cpus)}
            row["busy / quiet"] = row["busy_wall"] / row["quiet_wall"]
            worst = max(worst, row["busy / quiet"]) if setting == "ours" else worst
            rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
            print(json.dumps(rounded))
    print(f"at most {worst:.2f} times the quiet time, limit {LIMIT}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
