"""The cost of an extraction, beside the least that it can be, and beside dense singular value decompositions.

    python benchmarks/extract.py [--runs 3] [--blocks 12] [--rank 64] [--dense 2] [--folder FOLDER]

Makes a base in bfloat16, of four matrices a block that are 2048 and 8192 wide, and a tuned model whose changes fall
slowly over 128 directions. 49 blocks are 4.1 GB each. Runs in processes of their own, one after the other, by rounds:

- floor: hashes both files, as the record of the output needs, and reads, widens and subtracts all their numbers;
- extract: writes the adapter;
- dense: decomposes a matrix of each shape in float32, for an estimate of all of them.

Prints the medians of processor time, and as ratios of the same round: extract over floor, which may be 8, and dense
over extract, which has to be 10; and the largest memory of an extraction, which may be 600 MB. Exits with 1 where one
is beyond its limit. All of them run on one processor, where no other thread of theirs slows one down.
"""

import argparse
import os
import statistics
import sys
import tempfile

from one_processor import pin, processor_time

SHAPES = {"self_attn.q": (2048, 2048), "self_attn.o": (2048, 2048), "ffn.0": (8192, 2048), "ffn.2": (2048, 8192)}
DIRECTIONS = 128
MOST_OVER_FLOOR, LEAST_OVER_EXTRACT, MOST_MEMORY = 8.0, 10.0, 600_000


def paths(folder: str) -> list[str]:
    return [os.path.join(folder, f"{name}.safetensors") for name in ("tuned", "base")]


def write_models(folder: str, blocks: int) -> None:
    import torch
    from safetensors.torch import save_file

    numbers = torch.Generator().manual_seed(0)
    falling = torch.logspace(0, -1.5, DIRECTIONS) / DIRECTIONS**0.5
    base, tuned = {}, {}
    for name, (rows, columns) in (
        (f"blocks.{n}.{leaf}.weight", shape) for n in range(blocks) for leaf, shape in SHAPES.items()
    ):
        base[name] = torch.randn(rows, columns, generator=numbers).mul(0.02).bfloat16()
        up, down = torch.randn(rows, DIRECTIONS, generator=numbers), torch.randn(DIRECTIONS, columns, generator=numbers)
        tuned[name] = (base[name].float() + 0.002 * (up * falling) @ down).bfloat16()
    for path, tensors in zip(paths(folder), (tuned, base), strict=True):
        save_file(tensors, path)


def floor(folder: str) -> None:
    from lora_inspect.files.hashes import file_sha256
    from lora_inspect.files.input_file import identify
    from lora_inspect.files.safetensors.header import read_header
    from lora_inspect.maths.stored_numbers import stored_pieces

    tuned, base = (read_header(path)[0] for path in paths(folder))
    for path in paths(folder):
        file_sha256(path, identify(path))
    for name, info in base.items():
        for (_, ours), (_, theirs) in zip(stored_pieces(tuned[name]), stored_pieces(info), strict=True):
            ours - theirs


def extract(folder: str, rank: int) -> None:
    from lora_inspect.algebra.options import ExtractRequest
    from lora_inspect.ops.extract import extract as extract_planned
    from lora_inspect.ops.extract import plan_extract

    tuned, base = paths(folder)
    extract_planned(plan_extract(tuned, base, ExtractRequest(rank=rank), os.path.join(folder, "out.safetensors")), True)
    # That of this process alone: the one that `getrusage` gives is at least its parent's.
    with open("/proc/self/status") as file:
        print(next(line.split()[1] for line in file if line.startswith("VmHWM")))


def dense(count: int) -> None:
    import numpy

    from lora_inspect.algebra.linear.module_threads import one_blas_thread

    with one_blas_thread():
        for rows, columns in [SHAPES["self_attn.q"], SHAPES["ffn.0"]][:count]:
            matrix = numpy.random.default_rng(0).standard_normal((rows, columns)).astype(numpy.float32)
            numpy.linalg.svd(matrix, full_matrices=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--dense", type=int, default=2, help="how many of the two shapes are decomposed; 0: none")
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    pin()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_models(folder, arguments.blocks)
        floors, extracts, memory = [], [], []
        for _ in range(arguments.runs):
            floors.append(processor_time(__file__, "floor", folder)[0])
            took, printed = processor_time(__file__, "extract", folder, str(arguments.rank))
            extracts.append(took)
            memory.append(int(printed))
        for name, found in (("floor", floors), ("extract", extracts)):
            print(f"{name}: {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")
        over = statistics.median(one / unit for one, unit in zip(extracts, floors, strict=True))
        print(f"extract over floor: {over:.2f} (limit {MOST_OVER_FLOOR})")
        print(f"memory: {max(memory) / 1000:.0f} MB (limit {MOST_MEMORY / 1000:.0f})")
        failed = over > MOST_OVER_FLOOR or max(memory) > MOST_MEMORY
        if arguments.dense:
            small = processor_time(__file__, "dense", folder, "1")[0]
            both = processor_time(__file__, "dense", folder, "2")[0] if arguments.dense > 1 else 2 * small
            # Half of the modules have the one shape, half the other.
            times = arguments.blocks * 2 * both / statistics.median(extracts)
            print(f"dense over extract: {times:.1f} (at least {LEAST_OVER_EXTRACT:.0f}; {both:.1f} s for one of each)")
            failed |= times < LEAST_OVER_EXTRACT
    sys.exit(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        task, place, *rest = sys.argv[2:]
        if task == "floor":
            floor(place)
        elif task == "dense":
            dense(int(rest[0]))
        else:
            extract(place, int(rest[0]))
    else:
        main()
