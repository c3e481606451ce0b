"""Merges two different adapters into one output at once, in two processes of the same number, as in two containers.

    python two_containers.py FOLDER FIXTURES [--force]

Prints a JSON object: the number and the exit status of each run, what each said, the multiplier in what they made, and
the names that are left beside it.
"""

import contextlib
import ctypes
import io
import json
import os
import sys

from lora_inspect.cli import main
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.safetensors import writer

NEW_NUMBERS = 0x20000000  # CLONE_NEWPID
MULTIPLIERS = (0.5, 2.0)


def in_a_container(action):
    """Has a process with the number 1 run the action; where the system refuses that, one that believes to have it."""
    if os.fork():
        return
    if ctypes.CDLL(None).unshare(NEW_NUMBERS):
        os.getpid = lambda: 1
    elif child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(action())


def merging(output, fixtures, multiplier, options, said, halfway, go_on):
    """A run that says so when it has written a tensor and goes on when the other one has, too."""
    write, waited = writer.Writer.write_at, []

    def write_and_wait(self, name, position, chunk):
        end = write(self, name, position, chunk)
        if not waited:
            waited.append(os.write(halfway, b"."))
            os.read(go_on, 1)
        return end

    def run():
        writer.Writer.write_at = write_and_wait
        words, status = io.StringIO(), 0
        base, adapter = (f"{fixtures}/synthetic/{name}.safetensors" for name in ("base_f32", "rslora_flag"))
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            try:
                main(["merge", base, f"{adapter}:{multiplier}", "-o", output, *options])
            except SystemExit as ended:
                status = ended.code
        os.write(said, json.dumps([os.getpid(), status, words.getvalue()]).encode())
        return 0

    return run


def all_in(folder, fixtures, *options):
    output = os.path.join(folder, "out.safetensors")
    runs = []
    for multiplier in MULTIPLIERS:
        (answer, said), (halfway, tell), (wait, go) = os.pipe(), os.pipe(), os.pipe()
        in_a_container(merging(output, fixtures, multiplier, options, said, tell, wait))
        for ours in (said, tell, wait):
            os.close(ours)
        runs.append((answer, halfway, go))
    for _, halfway, _ in runs:
        assert os.read(halfway, 1) == b"."
    beside = sorted(os.listdir(folder))
    for _, _, go in runs:
        os.write(go, b".")
    ended = []
    for answer, _, _ in runs:
        with open(answer, encoding="utf-8") as handle:
            ended.append(json.load(handle))
    numbers, statuses, said = zip(*ended, strict=True)
    made = json.loads(open_checkpoint(output).metadata["lora_inspect.merged"])
    print(json.dumps({
        "numbers": numbers, "statuses": statuses, "said": said, "meanwhile": len(beside),
        "multiplier": made["adapters"][0]["multiplier"], "left": sorted(os.listdir(folder)),
    }))  # fmt: skip


if __name__ == "__main__":
    import torch  # noqa: F401  # once, and not in each run

    all_in(*sys.argv[1:])
