"""What `merge` costs, beside what copying and multiplying cost by themselves; and its peak of memory.

    python benchmarks/merge.py times --floor FLOOR.py [--naive NAIVE.py] [--blocks 30] [--rounds 3] [--folder FOLDER]
    python benchmarks/merge.py peaks [--blocks 30] [--folder FOLDER]

Thirty blocks make a base of 4.1 GB. `times`: every round runs FLOOR.py BASE ADAPTER --out FILE --rounds 1, which prints
a line of JSON with the seconds of a `copy` with fsync, of an exact `fold` in memory and of the `import` of torch, with
`F`, their sum, and `cpu`, what they take of processors; NAIVE.py BASE ADAPTER OUT, the merge that people write first;
and our merges of a LoRA, of a DoRA over outputs, of one over inputs, and of a LoRA in one block alone, in an order that
turns. Rounds in which the fold took over 25% more than in the quietest are dropped and counted. Prints a line a round,
and medians of the ratios, taken within a round: to F and to its `cpu`, and for one block to the copy and the import.
Exits with 1 where one is above its limit. --busy runs each of ours once more, beside a process that keeps a core busy.

`peaks`: the largest resident memory of merges into that base, into one twice as large, into one with a tensor four
times as large as the largest, each with a LoRA, a DoRA and one over inputs. Exits with 1 above 400 MB.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from busy import neighbour
from synthetic import KINDS, write_inputs

NOISE = 1.25
LIMIT_MB = 400
BUSY = 2.2
# What each of our merges may take: of F, and of F's `cpu`; one block: of copy and import.
LIMITS = {"lora": (1.0, 1.5), "dora": (1.2, 2.0), "columns": (None, None), "one block": (1.2, None)}

# Runs the command line in this process and reports the high-water mark that the system kept of it.
_MEASURED = """
import sys
from lora_inspect.cli import main
try:
    main(sys.argv[1:])
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""


def measured(command: list[str]) -> tuple[float, float, str]:
    """Wall and processor seconds of a command, and what it said on stderr."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise RuntimeError(done.stderr)
    return wall, sum(after[2:4]) - sum(before[2:4]), done.stderr


def merge(base: str, adapter: str, out: str) -> dict[str, float]:
    """Seconds, processor seconds and the peak of resident megabytes."""
    if os.path.exists(out):
        os.unlink(out)
    os.sync()
    wall, cpu, said = measured(["-c", _MEASURED, "merge", base, adapter, "-o", out])
    os.unlink(out)
    peak = re.search(r"VmHWM:\s+(\d+) kB", said)
    if peak is None:
        raise RuntimeError("the system does not report VmHWM")
    return {"s": wall, "cpu": cpu, "mb": int(peak[1]) / 1000}


def floor(script: str, base: str, adapter: str, out: str) -> dict[str, float]:
    command = [sys.executable, script, base, adapter, "--out", out, "--rounds", "1"]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def one_round(
    arguments: argparse.Namespace, inputs: dict[str, str], out: str, turn: int
) -> dict[str, dict[str, float]]:
    """What each thing took, in an order that turns from round to round."""
    base = inputs["base"]
    row: dict[str, dict[str, float]] = {}
    things = ["floor", *LIMITS, *(["naive"] if arguments.naive else [])]
    for name in things[turn % len(things) :] + things[: turn % len(things)]:
        if name == "floor":
            row[name] = floor(arguments.floor, base, inputs["lora"], out)
        elif name == "naive":
            wall, cpu, _ = measured([arguments.naive, base, inputs["lora"], out])
            row[name] = {"s": wall, "cpu": cpu}
            os.unlink(out)
        else:
            row[name] = merge(base, inputs[name], out)
            if arguments.busy:
                with neighbour(busy=True):
                    row[name]["busy"] = merge(base, inputs[name], out)["s"]
    return row


def ratios(name: str, row: dict[str, dict[str, float]]) -> tuple[float, float]:
    """To F, or to copy and import where little is folded, and to the processor's part of F."""
    reference, own = row["floor"], row[name]
    whole = reference["copy"] + reference["import"] if name == "one block" else reference["F"]
    return own["s"] / whole, own["cpu"] / reference["cpu"]


def times(arguments: argparse.Namespace, inputs: dict[str, str], out: str) -> bool:
    """Whether all limits are kept."""
    rows = []
    for turn in range(arguments.rounds):
        rows.append(one_round(arguments, inputs, out, turn))
        print(
            json.dumps({name: {key: round(value, 2) for key, value in own.items()} for name, own in rows[-1].items()})
        )
        sys.stdout.flush()
    quietest = min(row["floor"]["fold"] for row in rows)
    kept = [row for row in rows if row["floor"]["fold"] <= NOISE * quietest]
    print(f"{len(rows) - len(kept)} of {len(rows)} rounds dropped as noise")
    is_kept = True
    for name in [*LIMITS, *(["naive"] if arguments.naive else [])]:
        walls, cpus = zip(*(ratios(name, row) for row in kept), strict=True)
        found, limits = (statistics.median(walls), statistics.median(cpus)), LIMITS.get(name, (None, None))
        is_kept &= all(limit is None or value <= limit for value, limit in zip(found, limits, strict=True))
        busy = [row[name]["busy"] / row[name]["s"] for row in kept if "busy" in row[name]]
        beside = f", beside a busy core {statistics.median(busy):.2f} times the quiet time" if busy else ""
        is_kept &= not busy or statistics.median(busy) <= BUSY
        print(f"{name:10} {found[0]:.2f} of F, {found[1]:.2f} of its cpu (limits {limits[0]}, {limits[1]}){beside}")
    return is_kept


def peaks(inputs: dict[str, str], out: str) -> bool:
    """Whether the limit is kept."""
    worst = 0.0
    for base in ("base", "twice", "large"):
        for adapter in KINDS:
            own = merge(inputs[base], inputs[f"{adapter} of {base}"], out)
            worst = max(worst, own["mb"])
            print(
                f"{adapter:8} into {base:6} {os.path.getsize(inputs[base]) / 1e9:5.1f} GB: {own['mb']:.0f} MB",
                flush=True,
            )
    print(f"peak resident memory {worst:.0f} MB, limit {LIMIT_MB} MB")
    return worst <= LIMIT_MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("times", "peaks"))
    parser.add_argument("--floor")
    parser.add_argument("--naive")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="keep the synthetic files here and use them again")
    arguments = parser.parse_args()
    if arguments.what == "times" and not arguments.floor:
        parser.error("times needs --floor")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or scratch
        os.makedirs(folder, exist_ok=True)
        out = os.path.join(folder, "out.safetensors")
        inputs = write_inputs(folder, arguments.blocks, arguments.rank, arguments.what == "peaks")
        done = times(arguments, inputs, out) if arguments.what == "times" else peaks(inputs, out)
    sys.exit(not done)


if __name__ == "__main__":
    main()
