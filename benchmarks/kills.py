"""What a merge leaves that is killed: under the output's name the old output or the new one, never a part of either.

    python benchmarks/kills.py [--blocks 3] [--rank 16] [--files 30] [--folders 12] [--seed 0] [--without-exchange]
                               [--folder FOLDER]

Three blocks make a base of 490 MB, which is merged as one file and as a folder of three shards with other files beside
them. SIGKILL ends every run at a random moment: one of three anywhere in the time that a run takes, one in the time in
which it writes, one at one of its last calls of the system that name the place, around the renaming. Every fourth run
finds no output, the others replace one. After each, the next run has to leave the new output alone.
--without-exchange runs as on a system where two folders cannot change names in one step: there, between two renames,
the old folder may have another name until the next run. Prints a line a kill, and exits with 1 where anything else was
found.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter

from synthetic import write_all

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.safetensors.writer import TensorPlan, Writer

SHARDS = 3
LAST_CALLS = 12
MOMENTS = ("running", "writing", "call")

# Runs the command line, kills itself at the call with a number that names the place, and says how many there were.
_RUN = """
import atexit, os, signal, sys
place, last, exchanges = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
calls = 0
def call(event, arguments):
    global calls
    if any(isinstance(each, (str, bytes)) and place in os.fsdecode(each) for each in arguments):
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
if not exchanges:
    import ctypes
    library = ctypes.CDLL
    ctypes.CDLL = lambda name, *more, **options: library(name, *more, **options) if name else object()
sys.addaudithook(call)
atexit.register(lambda: print(f"calls {calls}", file=sys.stderr))
from lora_inspect.cli import main
main(sys.argv[4:])
"""


class Merge:
    """Merges of one base into `place`, and what is right there."""

    def __init__(self, base: str, adapter: str, place: str, exchanges: bool) -> None:
        self.base, self.adapter, self.place, self.exchanges = base, adapter, place, exchanges
        self.is_folder = os.path.isdir(base)
        self.name = "out" if self.is_folder else "out.safetensors"
        self.output = os.path.join(place, self.name)
        os.mkdir(place)
        self.run(multiplier=0.5)
        self.old_copy = place + " before"
        os.rename(self.output, self.old_copy)
        self.old = digest(self.old_copy)
        calls = self.run()
        self.new = digest(self.output)
        self.calls = {False: calls, True: self.run()}

    def start(self, multiplier: float = 1.0, last: int = 0) -> "subprocess.Popen[str]":
        command = ["merge", self.base, f"{self.adapter}:{multiplier}", "-o", self.output, "--force"]
        words = [sys.executable, "-c", _RUN, self.place, str(last), str(self.exchanges), *command]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self, multiplier: float = 1.0) -> int:
        """How many calls name the place; `seconds` is the time that the last run took, `writing` the writing of it."""
        started = time.perf_counter()
        process = self.start(multiplier)
        self.wait_until_it_writes(process)
        writes = time.perf_counter()
        _, said = process.communicate()
        ended = time.perf_counter()
        self.seconds, self.writing = ended - started, ended - writes
        found = re.fullmatch(r"calls (\d+)\n", said)
        if process.returncode or not found:
            raise RuntimeError(f"the merge ended with {process.returncode}: {said}")
        return int(found[1])

    def wait_until_it_writes(self, process: "subprocess.Popen[str]") -> None:
        while process.poll() is None and not any(name != self.name for name in os.listdir(self.place)):
            time.sleep(0.002)

    def prepare(self, is_there: bool) -> None:
        """Puts the old output, or nothing, where the new one will be."""
        for name in os.listdir(self.place):
            remove(os.path.join(self.place, name))
        if is_there and self.is_folder:
            shutil.copytree(self.old_copy, self.output)
        elif is_there:
            shutil.copyfile(self.old_copy, self.output)

    def kill(self, chance: random.Random, is_there: bool, moment: str) -> str:
        """Kills a run, with an output to replace or none; returns when."""
        self.prepare(is_there)
        if moment == "call":
            calls = self.calls[is_there]
            last = chance.randint(max(1, calls - LAST_CALLS + 1), calls)
            process, when = self.start(last=last), f"call {last} of {calls}"
        else:
            process = self.start()
            if moment == "writing":
                self.wait_until_it_writes(process)
            seconds = chance.uniform(0, self.writing if moment == "writing" else self.seconds)
            when = f"{moment} {seconds:.3f} s"
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        if process.returncode == 0:  # it was faster than the last one
            return self.kill(chance, is_there, moment)
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the merge ended with {process.returncode}: {said}")
        return when

    def shown(self) -> str:
        """What has the output's name: the old output, the new one, nothing, or a part."""
        if not os.path.lexists(self.output):
            return "none"
        return {self.old: "old", self.new: "new"}.get(digest(self.output), "PART")

    def beside(self) -> list[str]:
        """What else lies there, without random names."""
        others = (name for name in sorted(os.listdir(self.place)) if name != self.name)
        return [re.sub(r"^out(\.safetensors)?\.[0-9a-f]{16}", "", name) for name in others]


def digest(path: str) -> str:
    """Of the bytes of a file, or of all files in a folder with their names."""
    summed = hashlib.sha256()
    if os.path.isfile(path):
        with open(path, "rb") as handle:
            while chunk := handle.read(1 << 22):
                summed.update(chunk)
    else:
        below = sorted(os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
        summed.update(json.dumps([(os.path.relpath(file, path), digest(file)) for file in below]).encode())
    return summed.hexdigest()


def remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def write_shards(base: str, folder: str) -> str:
    """The base as a folder of shards, with an index, a file beside them and a file in a folder beside them."""
    if os.path.isdir(folder):
        return folder
    os.mkdir(folder)
    infos = sorted(open_checkpoint(base).tensors.values(), key=lambda info: info.start)
    size = sum(info.nbytes for info in infos)
    shards: list[list[str]] = [[] for _ in range(SHARDS)]
    for info in infos:
        shards[(info.start - infos[0].start) * SHARDS // size].append(info.name)
    weight_map = {}
    by_name = {info.name: info for info in infos}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        plans = [TensorPlan(name, by_name[name].dtype, by_name[name].shape) for name in names]
        with Writer(os.path.join(folder, file), plans, {"format": "pt"}) as writer:
            for name in names:
                writer.copy(by_name[name])
    os.mkdir(os.path.join(folder, "tokenizer"))
    beside = {
        "model.safetensors.index.json": json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}),
        "config.json": "{}",
        os.path.join("tokenizer", "vocab.txt"): "word\n" * 1_000_000,
    }
    for name, text in beside.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as handle:
            handle.write(text)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--files", type=int, default=30, help="how many merges into a file are killed")
    parser.add_argument("--folders", type=int, default=12, help="how many merges into a folder are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-exchange", action="store_true")
    parser.add_argument("--folder", help="keep the synthetic files here and use them again")
    arguments = parser.parse_args()
    chance, wrong, seen = random.Random(arguments.seed), 0, Counter()
    with tempfile.TemporaryDirectory() as scratch:
        inputs = arguments.folder or scratch
        os.makedirs(inputs, exist_ok=True)
        base, adapter, _ = write_all(inputs, arguments.blocks, arguments.rank)
        shards = write_shards(base, os.path.join(inputs, "shards"))
        print(f"{'':3}{'into':8}{'taking':>8}  {'killed at':18}{'found':7}{'beside it':42}after the next run")
        for kind, source, times in (("a file", base, arguments.files), ("a folder", shards, arguments.folders)):
            merge = Merge(source, adapter, os.path.join(scratch, kind), not arguments.without_exchange)
            for number in range(times):
                is_there = number % 4 > 0
                when, seconds = merge.kill(chance, is_there, MOMENTS[number % 3]), merge.seconds
                found, beside = merge.shown(), merge.beside()
                merge.run()
                next_found, next_beside = merge.shown(), merge.beside()
                moved = arguments.without_exchange and ".partial.old" in beside
                is_whole = found in ({"old", "new"} if is_there and not moved else {"none", "new"})
                is_right = is_whole and (next_found, next_beside) == ("new", [])
                wrong += not is_right
                seen[f"{kind}, {found}"] += 1
                print(
                    f"{number + 1:<3}{kind:8}{seconds:6.2f} s  {when:18}{found:7}{' '.join(beside) or '-':42}"
                    f"{' '.join([next_found, *next_beside])}{'' if is_right else '  WRONG'}",
                    flush=True,
                )
            merge.prepare(is_there=False)
    print(", ".join(f"{name}: {count}" for name, count in sorted(seen.items())))
    print(f"{wrong} of {arguments.files + arguments.folders} kills left something wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
