"""`combine --method ties` in core space, and TIES on dense changes with the SVD of the result, for the same adapters.

    python benchmarks/methods.py [--modules 300] [--dense 2] [--width 1536] [--rank 32]

Four adapters of LoRA in float32 with square layers. Of the dense way so many modules are computed as `--dense` says, in
float32 with one thread; the rest would take as long each. Prints both times a module, and their ratio. The dense way is
TIES per layer: the largest numbers of each change, the sign of their sum, the mean of those that agree, and the SVD
that makes factors of the result again.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from lora_inspect import combine

COUNT, DENSITY = 4, 0.2


def write(path, seed, modules, width, rank):
    numbers = numpy.random.default_rng(seed)
    tensors = {}
    for at in range(modules):
        name = f"lora_unet_blocks_{at}_self_attn_q"
        tensors[f"{name}.lora_down.weight"] = numbers.standard_normal((rank, width), numpy.float32)
        tensors[f"{name}.lora_up.weight"] = numbers.standard_normal((width, rank), numpy.float32)
        tensors[f"{name}.alpha"] = numpy.array(rank, numpy.float32)
    save_file(tensors, path)
    return tensors


def dense(changes):
    kept = []
    for change in changes:
        count = round(DENSITY * change.size)
        least = numpy.partition(numpy.abs(change), change.size - count, axis=None)[change.size - count]
        kept.append(numpy.where(numpy.abs(change) >= least, change, 0))
    elected = numpy.sign(sum(kept))
    agree = [numpy.sign(change) * elected > 0 for change in kept]
    merged = sum(change * own for change, own in zip(kept, agree, strict=True)) / numpy.maximum(sum(agree), 1)
    return numpy.linalg.svd(merged, full_matrices=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, default=300)
    parser.add_argument("--dense", type=int, default=2)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--rank", type=int, default=32)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{seed}.safetensors" for seed in range(COUNT)]
        first = [write(file, at, asked.modules, asked.width, asked.rank) for at, file in enumerate(files)]
        pairs = [
            [
                (
                    own[f"lora_unet_blocks_{at}_self_attn_q.lora_up.weight"],
                    own[f"lora_unet_blocks_{at}_self_attn_q.lora_down.weight"],
                )
                for own in first
            ]
            for at in range(asked.dense)
        ]
        del first
        start = time.process_time(), time.perf_counter()
        combine([str(file) for file in files], folder / "out.safetensors", method="ties", density=DENSITY)
        ours = [
            (now - then) / asked.modules
            for now, then in zip((time.process_time(), time.perf_counter()), start, strict=True)
        ]
        with threadpool_limits(1):
            begun = time.process_time()
            for own in pairs:
                dense([up @ down for up, down in own])
            theirs = (time.process_time() - begun) / asked.dense
    processor, wall = (1000 * one for one in ours)
    print(
        f"in core space: {processor:.1f} ms of the processor a module; {wall:.1f} ms in all, with reading and writing"
    )
    print(f"dense: {1000 * theirs:.0f} ms of the processor a module, {theirs / ours[0]:.0f} times as much")


if __name__ == "__main__":
    main()
