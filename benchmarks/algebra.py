"""The cost of sums of adapters, beside the least that it can be, and beside dense singular value decompositions.

    python benchmarks/algebra.py [--runs 5] [--blocks 75] [--dense 2] [--folder FOLDER]

Makes four adapters of rank 32 in bfloat16, of four modules a block that are 2048 and 8192 wide, and runs in processes
of their own, one after the other, round by round:

- floor: reads and widens all factors, multiplies the two Gram matrices of each module in float64, and writes and syncs
  as many bytes as the exact sum has;
- exact: writes the sum of the four at multipliers of their own, with all its ranks;
- trimmed: writes the same at rank 32;
- dense: decomposes the dense matrices of some modules of both shapes, for an estimate of all of them.

Prints the medians of processor time, and as ratios of the same round: exact over floor, which may be 2, and dense over
trimmed, which has to be 80. Exits with 1 where one is beyond its limit. All of them run on one processor, where no
other thread of theirs slows one down.
"""

import argparse
import os
import statistics
import sys
import tempfile

from one_processor import pin, processor_time

SHAPES = {"self_attn_q": (2048, 2048), "self_attn_o": (2048, 2048), "ffn_0": (8192, 2048), "ffn_2": (2048, 8192)}
MULTIPLIERS, RANK = (0.7, -0.3, 0.5, 1.0), 32
MOST_OVER_FLOOR, LEAST_OVER_TRIMMED = 2.0, 80.0


def paths(folder: str) -> list[str]:
    return [os.path.join(folder, f"{number}.safetensors") for number in range(len(MULTIPLIERS))]


def write_adapters(folder: str, blocks: int) -> None:
    import torch
    from safetensors.torch import save_file

    for seed, path in enumerate(paths(folder)):
        numbers = torch.Generator().manual_seed(seed)
        tensors = {}
        for block in range(blocks):
            for leaf, (rows, columns) in SHAPES.items():
                name = f"lora_unet_blocks_{block}_{leaf}"
                tensors[f"{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=numbers).mul(0.02).bfloat16()
                tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, columns, generator=numbers).bfloat16()
                tensors[f"{name}.alpha"] = torch.tensor(16.0)
        save_file(tensors, path)


def floor(folder: str) -> None:
    import numpy

    from lora_inspect.algebra.linear.module_threads import one_blas_thread
    from lora_inspect.files.safetensors.header import read_header
    from lora_inspect.maths.stored_numbers import load

    headers = [read_header(path)[0] for path in paths(folder)]
    with one_blas_thread(), open(os.path.join(folder, "floor.bin"), "wb") as file:
        for key in (key for key in headers[0] if key.endswith("lora_up.weight")):
            up = numpy.concatenate([load(one[key]).astype(float) for one in headers], axis=1)
            down = numpy.concatenate([load(one[key.replace("_up", "_down")]).astype(float) for one in headers])
            up.T @ up
            down @ down.T
            file.write(bytes(2 * (up.size + down.size)))
        file.flush()
        os.fsync(file.fileno())


def summed(folder: str, rank: int | None) -> None:
    from lora_inspect.algebra.options import CombineRequest
    from lora_inspect.ops.combine import combine, plan_combine
    from lora_inspect.reading.model.settings import parse_arguments

    named = [f"{path}:{multiplier}" for path, multiplier in zip(paths(folder), MULTIPLIERS, strict=True)]
    plan = plan_combine(parse_arguments(named), os.path.join(folder, "out.safetensors"), CombineRequest(rank=rank))
    assert plan.making.dtype == "BF16"
    combine(plan, force=True)


def dense(folder: str, count: int) -> None:
    import numpy

    from lora_inspect.algebra.linear.module_threads import one_blas_thread

    with one_blas_thread():
        for rows, columns in [SHAPES["self_attn_q"], SHAPES["ffn_0"]][:count]:
            numpy.linalg.svd(
                numpy.random.default_rng(0).standard_normal((rows, columns)).astype(numpy.float32), full_matrices=False
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=75)
    parser.add_argument("--dense", type=int, default=2, help="how many of the two shapes are decomposed; 0: none")
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    pin()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_adapters(folder, arguments.blocks)
        tasks = {"floor": ("floor",), "exact": ("exact",), "trimmed": ("trimmed",)}
        took: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(arguments.runs):
            for name, words in tasks.items():
                took[name].append(processor_time(__file__, *words, folder)[0])
        for name, found in took.items():
            print(f"{name}: {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")
        over = statistics.median(one / unit for one, unit in zip(took["exact"], took["floor"], strict=True))
        print(f"exact over floor: {over:.2f} (limit {MOST_OVER_FLOOR})")
        failed = over > MOST_OVER_FLOOR
        if arguments.dense:
            small = processor_time(__file__, "dense", folder, "1")[0]
            both = processor_time(__file__, "dense", folder, "2")[0] if arguments.dense > 1 else 2 * small
            # Half of the modules have the one shape, half the other.
            whole = arguments.blocks * 2 * both
            times = whole / statistics.median(took["trimmed"])
            print(f"dense over trimmed: {times:.0f} (at least {LEAST_OVER_TRIMMED:.0f}; {both:.1f} s for one of each)")
            failed |= times < LEAST_OVER_TRIMMED
    sys.exit(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        task, place, *rest = sys.argv[2:]
        if task == "floor":
            floor(place)
        elif task == "dense":
            dense(place, int(rest[0]))
        else:
            summed(place, RANK if task == "trimmed" else None)
    else:
        main()
