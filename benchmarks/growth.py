"""The processor time of `compat` and `convert` for many modules, and its ratio between two numbers of them.

    python benchmarks/growth.py [--modules 10000 100000]

The adapter has rank 1, layers of 2 x 2 and kohya's names for Wan. The time of a command for one module is its start,
which does not count.

The last line is the ratio of a loop that copies small records and does nothing else: objects that leave the processor's
cache take longer, in any program.
"""

import argparse
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import namedtuple

import numpy as np
from safetensors.numpy import save_file


def write(path: str, modules: int) -> None:
    tensors = {}
    for number in range(modules):
        name = f"lora_unet_blocks_{number}_self_attn_q"
        tensors[f"{name}.lora_down.weight"] = np.full((1, 2), 0.5, np.float32)
        tensors[f"{name}.lora_up.weight"] = np.full((2, 1), 0.5, np.float32)
        tensors[f"{name}.alpha"] = np.array(0.5, np.float32)
    save_file(tensors, path)


def seconds(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "lora_inspect", *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def copying(modules: int) -> float:
    """Return the processor time of copies of so many records of three named parts."""
    record = namedtuple("record", "name parts")
    began = time.process_time()
    found = {
        name: record(name, {end: record(f"{name}.{end}", (1, 2)) for end in ("down", "up", "alpha")})
        for name in map(str, range(modules))
    }
    for _ in range(12):
        copied = {
            f"{name}x": one._replace(parts={end: part._replace(name=f"{end}{name}") for end, part in one.parts.items()})
            for name, one in found.items()
        }
        del copied
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, nargs=2, default=(10_000, 100_000))
    few, many = parser.parse_args().modules
    with tempfile.TemporaryDirectory() as folder:
        files = {count: os.path.join(folder, f"{count}.safetensors") for count in (1, few, many)}
        for count, file in files.items():
            write(file, count)
        output = ["-o", os.path.join(folder, "output.safetensors"), "--force"]
        for name, before, behind in (
            ("compat", ["compat"], []),
            ("convert", ["convert"], output),
            ("convert --to diffusers", ["convert"], ["--to", "diffusers", *output]),
        ):
            took = {count: seconds([*before, file, *behind]) for count, file in files.items()}
            ratio = (took[many] - took[1]) / (took[few] - took[1])
            print(f"{name:24}{took[few]:8.1f} s{took[many]:8.1f} s   ratio {ratio:.1f} for {many / few:g} times")
    gc.disable()
    took = {count: copying(count) for count in (few, many)}
    print(f"{'copies of records':24}{took[few]:8.1f} s{took[many]:8.1f} s   ratio {took[many] / took[few]:.1f}")


if __name__ == "__main__":
    main()
