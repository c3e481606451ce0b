"""What it costs to merge a sharded base by several processes, and what is left of one that is killed.

    python benchmarks/shards.py times [--blocks 6] [--rank 16] [--rounds 3] [--folder FOLDER]
    python benchmarks/shards.py kills [--blocks 2] [--kills 20] [--seed 0] [--folder FOLDER]

The base has 24 shards; six blocks make 0.9 GB. `times` merges it by one process, by two jobs at once (--shard), and
by two processes of torchrun, each with one thread, in turn. It prints the wall time, the processors' seconds and the
peak of memory of each process, and the bytes that all of them read and wrote together, by what the system counts of
each, over the least there can be: the base and each adapter once, the output once. `kills` kills one of two processes
of torchrun at random moments, and one of two jobs: there has to be no output then, or a whole one, and the next run
has to make it. Both exit with 1 where the output is not, byte for byte, that of one process.
"""

import argparse
import contextlib
import filecmp
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from synthetic import adapter_shapes, base_shapes, write

SHARDS = 24
# Runs the command line, and says at its end what the system counted.
_RUN = """
import atexit, resource, sys
def tell():
    with open("/proc/self/io") as handle:
        counts = dict(line.split(": ") for line in handle.read().splitlines())
    with open("/proc/self/status") as handle:
        peak = next(line.split()[1] for line in handle if line.startswith("VmHWM"))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("COST", peak, used.ru_utime + used.ru_stime, counts["rchar"], counts["wchar"], file=sys.__stderr__)
atexit.register(tell)
sys.argv[0] = "__main__.py"
from lora_inspect.cli import main
main(sys.argv[1:])
"""


class Cost(NamedTuple):
    """What a run took: seconds, those of processors, the peak of each process in MB, bytes read and written by all."""

    wall: float
    cpu: float
    peaks: list[int]
    read: int
    written: int


class Place:
    """A base, an adapter and the output of one process, in a folder."""

    def __init__(self, folder: str, blocks: int, rank: int) -> None:
        self.base, self.adapter, self.out, self.one = (
            os.path.join(folder, name) for name in ("base", "lora.safetensors", "out", "one")
        )
        shapes = base_shapes(blocks)
        if not os.path.exists(self.base):
            os.mkdir(self.base)
            hands: list[dict[str, tuple[int, ...]]] = [{} for _ in range(SHARDS)]
            sizes = [0] * SHARDS
            for name, shape in shapes.items():
                least = min(range(SHARDS), key=sizes.__getitem__)
                hands[least][name] = shape
                sizes[least] += bytes_of(shape)
            named = [f"model-{number + 1:05}-of-{SHARDS:05}.safetensors" for number in range(SHARDS)]
            for file, hand in zip(named, hands, strict=True):
                write(os.path.join(self.base, file), hand)
            weights = {name: file for file, hand in zip(named, hands, strict=True) for name in hand}
            with open(os.path.join(self.base, "model.safetensors.index.json"), "w") as handle:
                json.dump({"metadata": {}, "weight_map": weights}, handle)
            write(self.adapter, adapter_shapes(shapes, rank, "lora"), rank)
        self.runner = os.path.join(folder, "run.py")
        with open(self.runner, "w") as handle:
            handle.write(_RUN)
        self.run(1)
        shutil.rmtree(self.one, ignore_errors=True)
        os.rename(self.out, self.one)

    @property
    def least(self) -> tuple[int, int]:
        """The least bytes that can be read and written."""
        own = os.path.getsize(self.adapter)
        return size_of(self.base) + own, size_of(self.one)

    def start(self, *more: str, torchrun: int = 0, out: str | None = None) -> "subprocess.Popen[str]":
        command = ["merge", self.base, self.adapter, "-o", out or self.out, *more]
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(torchrun)] if torchrun else []
        # A thread each, for a fair comparison; torchrun's processes take their share of the cores by themselves.
        threads = {} if torchrun else {"OMP_NUM_THREADS": "1"}
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | threads
        return subprocess.Popen(
            [sys.executable, *launch, self.runner, *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_two(self, torchrun: bool) -> "list[subprocess.Popen[str]]":
        """Two processes: those of one torchrun, or a job each."""
        return [self.start(torchrun=2)] if torchrun else [self.start("--shard", f"{number}/2") for number in (1, 2)]

    def run(self, processes: int, torchrun: bool = False) -> Cost:
        """One merge: by one process, by jobs at once, or by processes of torchrun."""
        shutil.rmtree(self.out, ignore_errors=True)
        began = time.perf_counter()
        runs = self.start_two(torchrun) if processes == 2 else [self.start()]
        said = [run.communicate()[1] for run in runs]
        wall = time.perf_counter() - began
        if any(run.returncode for run in runs):
            sys.exit("\n".join(said))
        told = [line.split()[1:] for text in said for line in text.splitlines() if line.startswith("COST")]
        return Cost(
            wall,
            sum(float(cpu) for _, cpu, _, _ in told),
            sorted(int(peak) // 1024 for peak, _, _, _ in told),
            sum(int(read) for _, _, read, _ in told),
            sum(int(written) for _, _, _, written in told),
        )

    def is_right(self) -> bool:
        """Whether the output is that of one process."""
        names = sorted(os.listdir(self.one))
        return sorted(os.listdir(self.out)) == names and not filecmp.cmpfiles(self.one, self.out, names, False)[1]


def bytes_of(shape: tuple[int, ...]) -> int:
    size = 2
    for side in shape:
        size *= side
    return size


def size_of(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))


def times(place: Place, rounds: int) -> bool:
    kinds = {"one process": (1, False), "two jobs": (2, False), "torchrun, two": (2, True)}
    found: dict[str, list[Cost]] = {kind: [] for kind in kinds}
    is_right = True
    for _ in range(rounds):
        for kind, (processes, torchrun) in kinds.items():
            found[kind].append(place.run(processes, torchrun))
            is_right &= place.is_right()
    read, written = place.least
    print(f"least: {read / 1e9:.3f} GB read, {written / 1e9:.3f} GB written")
    for kind, costs in found.items():
        walls = " ".join(f"{cost.wall:.1f}" for cost in costs)
        cpu = statistics.median(cost.cpu for cost in costs)
        last = costs[-1]
        print(
            f"{kind:15} wall {walls} s, processors {cpu:.1f} s, peaks {last.peaks} MB, "
            f"read {last.read / read:.2f}, written {last.written / written:.2f} of the least"
        )
    print("bytes equal" if is_right else "BYTES DIFFER")
    return is_right


def kills(place: Place, count: int, seed: int) -> bool:
    chance = random.Random(seed)
    whole = {True: place.run(2, True).wall, False: place.run(2).wall}
    is_right, ends = place.is_right(), []
    for turn in range(count):
        torchrun = turn % 2 == 0
        shutil.rmtree(place.out)
        runs = place.start_two(torchrun)
        moment = chance.uniform(0.3, 1.0) * whole[torchrun]
        time.sleep(moment)
        victims = children(runs[0].pid) if torchrun else [run.pid for run in runs]
        if victims:
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(chance.choice(victims), signal.SIGKILL)
        for run in runs:
            run.communicate()
        is_there = os.path.exists(place.out)
        right_then = place.is_right() if is_there else True
        left = len(os.listdir(f"{place.out}.parts/entries")) if os.path.exists(f"{place.out}.parts") else 0
        if not is_there:
            for run in place.start_two(torchrun):
                run.communicate()
        good = right_then and place.is_right() and not os.path.exists(f"{place.out}.parts")
        is_right &= good
        ends.append(is_there)
        print(
            f"{'torchrun' if torchrun else 'job':8} killed after {moment:.1f} s: "
            f"{'a whole output' if is_there else f'no output, {left} shards'}; then {'right' if good else 'WRONG'}",
            flush=True,
        )
    print(f"{count} kills, {ends.count(False)} before the end: {'all right' if is_right else 'WRONG'}")
    return is_right


def children(parent: int) -> list[int]:
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as handle:
                if int(handle.read().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(name))
        except OSError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["times", "kills"])
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Place(folder, arguments.blocks or (6 if arguments.what == "times" else 2), arguments.rank)
        if arguments.what == "times":
            is_right = times(place, arguments.rounds)
        else:
            is_right = kills(place, arguments.kills, arguments.seed)
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
