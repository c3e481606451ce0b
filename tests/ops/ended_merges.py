"""Ends merges by several threads at random moments, and says what that left behind.

    python ended_merges.py FOLDER TIMES SIGNAL...

Prints a JSON list: for each end the signal, the status, what is under the output's name ("none", "old", "new" or
"other"), the names beside it, and both again after the next run.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time

LAYERS, WIDTH, THREADS = 6, 256, 3
OUT = "out.safetensors"


def write_inputs(folder):
    import torch
    from safetensors.torch import save_file

    base, adapter = {}, {}
    for layer in range(LAYERS):
        base |= {f"b.{layer}.q.weight": torch.randn(WIDTH, WIDTH), f"b.{layer}.q.bias": torch.randn(WIDTH)}
        base |= {f"b.{layer}.other.weight": torch.randn(WIDTH, WIDTH)}
        name = f"lora_unet_b_{layer}_q"
        adapter |= {f"{name}.lora_down.weight": torch.randn(4, WIDTH), f"{name}.lora_up.weight": torch.randn(WIDTH, 4)}
        adapter |= {f"{name}.alpha": torch.tensor(4.0)}
    save_file(base, f"{folder}/base.safetensors")
    save_file(adapter, f"{folder}/adapter.safetensors")


def merge(folder, multiplier, *more):
    """Runs the command line and returns its status."""
    from lora_inspect.cli import main

    words = ["merge", f"{folder}/base.safetensors", f"{folder}/adapter.safetensors:{multiplier}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main([*words, "-o", f"{folder}/place/{OUT}", "--force", *more])
        except SystemExit as ended:
            return ended.code


def start(folder, multiplier=1.0):
    """The number of a process that merges."""
    child = os.fork()
    if not child:
        status = 1
        try:
            status = merge(folder, multiplier)
        finally:
            os._exit(status)
    return child


def load_all(folder):
    """Loads what a merge needs, before any process is made of this one, and has a merge take several threads."""
    import lora_inspect.merging.one_weight  # noqa: F401
    from lora_inspect.merging import fold, working_crew

    working_crew.computing_threads = lambda most: THREADS
    fold.BLOCK_ELEMENTS, working_crew.COPIED_BYTES = 1 << 13, 1 << 16
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    assert merge(folder, 1.0, "--dry-run") == 0
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(path):
    if not os.path.exists(path):
        return None
    with open(path, "rb") as handle:
        return hashlib.sha256(handle.read()).hexdigest()


def main(folder, times, *names):
    place, chance = f"{folder}/place", random.Random(0)
    os.mkdir(place)
    write_inputs(folder)
    load_all(folder)
    known = {None: "none"}
    for name, multiplier in (("old", 0.5), ("new", 1.0)):
        assert ended(start(folder, multiplier)) == 0
        known[digest(f"{place}/{OUT}")] = name
        shutil.copyfile(f"{place}/{OUT}", f"{folder}/{name}")
    started = time.perf_counter()
    assert ended(start(folder)) == 0
    whole = time.perf_counter() - started

    def state():
        return known.get(digest(f"{place}/{OUT}"), "other"), sorted(name for name in os.listdir(place) if name != OUT)

    found = []
    for turn in range(int(times)):
        number = getattr(signal, names[turn % len(names)])
        os.unlink(f"{place}/{OUT}")
        if turn % 3:
            shutil.copyfile(f"{folder}/old", f"{place}/{OUT}")
        child = start(folder)
        time.sleep(chance.uniform(0, whole))
        os.kill(child, number)
        status = ended(child)
        left, beside = state()
        assert ended(start(folder)) == 0
        found.append([number.name, status, bool(turn % 3), left, beside, *state()])
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
