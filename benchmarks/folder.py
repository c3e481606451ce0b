"""What `info` of a folder costs: CPU time a file, wall time, and the time until its first row.

    python benchmarks/folder.py [--files 200] [--runs 5] [--kind steps] [FOLDER]

Without a FOLDER it writes adapters of some 300 layers into a temporary one, of a kind:

- steps: the steps of one training of Wan, which have all names and shapes in common;
- various: adapters of Wan of six ranks and four alphas, of which no program's rules can take one for another;
- mixed: adapters of Wan, FLUX.1 and SDXL of six ranks, each without a tenth of its layers, drawn at random;
- copies: of every 40 files 39 have the same tensors as the first one, and metadata of their own, in 27 MB;
- small-copies: the same with layers of 64 by 64, in 0.4 MB;
- tiny: adapters of one layer, all of one size, with numbers of their own.

The data is all holes but for the alphas, in tiny ones random numbers. Prints the medians for one process and
for two, the largest memory of the first, and beside them what safetensors-arch takes for the same folder where that is
installed, the runs in turn.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import NamedTuple

RANKS, ALPHAS = (4, 8, 16, 32, 64, 128), (1.0, 4.0, 8.0, 16.0)
KINDS = ("steps", "various", "mixed", "copies", "small-copies", "tiny")

WAN = {
    f"blocks_{block}_{layer}": shape
    for block in range(30)
    for layer, shape in {
        **{f"{attention}_{leaf}": (5120, 5120) for attention in ("self_attn", "cross_attn") for leaf in "qkvo"},
        "ffn_0": (13824, 5120),
        "ffn_2": (5120, 13824),
    }.items()
}
_STREAM = {"attn_qkv": (9216, 3072), "attn_proj": (3072, 3072), "mlp_0": (12288, 3072), "mlp_2": (3072, 12288)}
FLUX = {
    **{
        f"double_blocks_{block}_{side}_{layer}": shape
        for block in range(19)
        for side in ("img", "txt")
        for layer, shape in {**_STREAM, "mod_lin": (18432, 3072)}.items()
    },
    **{
        f"single_blocks_{block}_{layer}": shape
        for block in range(38)
        for layer, shape in {"linear1": (21504, 3072), "linear2": (3072, 15360), "modulation_lin": (9216, 3072)}.items()
    },
}
_DEEP = ("input_blocks_7", "input_blocks_8", "middle_block", "output_blocks_0", "output_blocks_1", "output_blocks_2")
_SHALLOW = ("input_blocks_4", "input_blocks_5", "output_blocks_3", "output_blocks_4", "output_blocks_5")
SDXL = {
    f"{place}_1_transformer_blocks_{block}_attn2_{leaf}": (width, 2048 if leaf in ("to_k", "to_v") else width)
    for places, width, blocks in ((_DEEP, 1280, 10), (_SHALLOW, 640, 2))
    for place in places
    for block in range(blocks)
    for leaf in ("to_q", "to_k", "to_v", "to_out_0")
}
FAMILIES = {"wan": WAN, "flux1": FLUX, "sdxl_base_v1-0": SDXL}


class Cost(NamedTuple):
    """The cost of one run of a command, in seconds and MB; `first` is the time until its first row."""

    cpu: float
    wall: float
    first: float
    memory: float


def write_adapter(
    path: str,
    layers: Mapping[str, tuple[int, int]],
    rank: int,
    alpha: float,
    mark: int,
    family: str = "wan",
    is_filled: bool = False,
) -> None:
    """An adapter of these layers; files with another `mark` have other tensors."""
    header: dict[str, object] = {
        "__metadata__": {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(alpha),
            "ss_base_model_version": family,
            "ss_output_name": os.path.basename(path),
        }
    }
    position, alphas = 0, []
    tensors = [
        (f"lora_unet_{layer}.{key}", dtype, shape)
        for layer, (rows, columns) in layers.items()
        for key, dtype, shape in (
            ("alpha", "F32", []),
            ("lora_down.weight", "BF16", [rank, columns]),
            ("lora_up.weight", "BF16", [rows, rank]),
        )
    ]
    # The library writes wide types first, and each by name.
    for name, dtype, shape in sorted(tensors, key=lambda tensor: (tensor[1] != "F32", tensor[0])):
        size = math.prod(shape) * (2 if shape else 4)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        if not shape:
            alphas.append(position)
        position += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        if is_filled:
            # Small exponents in every second byte: finite numbers of bfloat16.
            file.write(random.Random(mark).randbytes(position).translate(bytes(byte & 0x3F for byte in range(256))))
        else:
            file.truncate(start + position)
        for place in alphas:
            file.seek(start + place)
            file.write(struct.pack("<f", alpha))
        # What makes it another file than the one before, where the two have all else in common.
        file.seek(start + 4 * len(alphas))
        file.write(struct.pack("<I", mark))


def write_folder(folder: str, files: int, kind: str) -> None:
    drawn = random.Random(0)
    for number in range(files):
        path = os.path.join(folder, f"style_{number:04}.safetensors")
        rank, alpha = RANKS[number % len(RANKS)], ALPHAS[number % len(ALPHAS)]
        if kind == "mixed":
            family = drawn.choice(list(FAMILIES))
            kept = {layer: shape for layer, shape in FAMILIES[family].items() if drawn.random() > 0.1}
            write_adapter(path, kept, drawn.choice(RANKS), alpha, number, family)
        elif kind in ("copies", "small-copies"):
            layers = WAN if kind == "copies" else dict.fromkeys(WAN, (64, 64))
            write_adapter(path, layers, 4, 4.0, mark=number // 40)
        elif kind == "tiny":
            write_adapter(path, {"blocks_0_self_attn_q": (64, 64)}, 4, 4.0, number, is_filled=True)
        else:
            write_adapter(path, WAN, *((rank, alpha) if kind == "various" else (4, 4.0)), mark=number)


def cost(command: list[str], environment: dict[str, str], lines: int) -> Cost:
    """The cost of a command whose first row is the last of so many lines."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        for _ in range(lines):
            process.stdout.readline()
        first = time.perf_counter() - start
        process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - start, first, used.ru_maxrss / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument("--peer", default=shutil.which("safetensors-arch"), help="the command of safetensors-arch")
    arguments = parser.parse_args()
    # A machine that never keeps bytecode would measure the compiler.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as own:
        folder = arguments.folder or own
        if not arguments.folder:
            write_folder(folder, arguments.files, arguments.kind)
        files = sum(name.endswith(".safetensors") for _, _, names in os.walk(folder) for name in names)
        program = [sys.executable, "-m", "lora_inspect", "info", folder, "--jobs"]
        commands = {"one process": [*program, "1"], "two processes": [*program, "2"]}
        if arguments.peer:
            commands["safetensors-arch"] = [arguments.peer, folder]
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for run in range(arguments.runs + 1):
            for name, command in commands.items():
                found = cost(command, environment, 1 if command[0] == arguments.peer else 2)
                if run:  # the first one warms the disk's cache and the bytecode
                    costs[name].append(found)
    print(f"{files} files")
    for name, all_ in costs.items():
        cpu, wall, first, memory = (statistics.median(values) for values in zip(*all_, strict=True))
        print(
            f"{name}: {cpu / files * 1000:.2f} ms CPU a file, {wall:.2f} s in all, first row after {first:.2f} s, "
            f"{memory:.0f} MB"
        )
        if arguments.peer:
            ratios = [one.cpu / unit.cpu for one, unit in zip(all_, costs["safetensors-arch"], strict=True)]
            print(f"    {statistics.median(ratios):.2f} times the processor time of safetensors-arch")


if __name__ == "__main__":
    main()
