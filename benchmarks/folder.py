"""What `info` of a folder costs: CPU time a file, wall time, and the time until its first row.

    python benchmarks/folder.py [--files 200] [--runs 5] [--various] [FOLDER]

Without a FOLDER it writes adapters of Wan's 300 block layers into a temporary one: the steps of one training, or with
`--various` files of six ranks and four alphas, of which no program's rules can take one for another. The data is all
holes but for the alphas. Prints the medians for one process and for two, and beside them what safetensors-arch takes
for the same folder where that is installed, the runs in turn.
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

WIDTH, INNER, BLOCKS = 5120, 13824, 30
LAYERS = {
    **{f"{attention}_{leaf}": (WIDTH, WIDTH) for attention in ("self_attn", "cross_attn") for leaf in "qkvo"},
    "ffn_0": (INNER, WIDTH),
    "ffn_2": (WIDTH, INNER),
}
RANKS, ALPHAS = (4, 8, 16, 32, 64, 128), (1.0, 4.0, 8.0, 16.0)


class Cost(NamedTuple):
    """What one run of a command took, in seconds; `first` is the time until its second line, which is the first row."""

    cpu: float
    wall: float
    first: float


def write_adapter(path: str, number: int, rank: int, alpha: float) -> None:
    header: dict[str, object] = {
        "__metadata__": {
            "ss_network_module": "networks.lora_wan",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(alpha),
            "ss_base_model_version": "wan",
            "ss_output_name": f"style{number}",
        }
    }
    position, alphas = 0, []
    for block in range(BLOCKS):
        for layer, (rows, columns) in LAYERS.items():
            module = f"lora_unet_blocks_{block}_{layer}"
            for key, dtype, shape in (
                ("alpha", "F32", []),
                ("lora_down.weight", "BF16", [rank, columns]),
                ("lora_up.weight", "BF16", [rows, rank]),
            ):
                size = math.prod(shape) * (2 if shape else 4)
                header[f"{module}.{key}"] = {
                    "dtype": dtype,
                    "shape": shape,
                    "data_offsets": [position, position + size],
                }
                if not shape:
                    alphas.append(position)
                position += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + position)
        for place in alphas:
            file.seek(start + place)
            file.write(struct.pack("<f", alpha))
        # What makes it another file than the one before, where the two have all else in common.
        file.seek(start + 4)
        file.write(struct.pack("<I", number))


def write_folder(folder: str, files: int, various: bool) -> None:
    for number in range(files):
        rank = RANKS[number % len(RANKS)] if various else RANKS[0]
        alpha = ALPHAS[number % len(ALPHAS)] if various else ALPHAS[1]
        write_adapter(os.path.join(folder, f"style_{number:03}.safetensors"), number, rank, alpha)


def cost(command: list[str], environment: dict[str, str]) -> Cost:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        for _ in range(2):
            process.stdout.readline()
        first = time.perf_counter() - start
        process.stdout.read()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--various", action="store_true")
    parser.add_argument("--peer", default=shutil.which("safetensors-arch"), help="the command of safetensors-arch")
    arguments = parser.parse_args()
    # A machine that never keeps bytecode would measure the compiler.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as own:
        folder = arguments.folder or own
        if not arguments.folder:
            write_folder(folder, arguments.files, arguments.various)
        files = sum(name.endswith(".safetensors") for _, _, names in os.walk(folder) for name in names)
        program = [sys.executable, "-m", "lora_inspect", "info", folder, "--jobs"]
        commands = {"one process": [*program, "1"], "two processes": [*program, "2"]}
        if arguments.peer:
            commands["safetensors-arch"] = [arguments.peer, folder]
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for run in range(arguments.runs + 1):
            for name, command in commands.items():
                found = cost(command, environment)
                if run:  # the first one warms the disk's cache and the bytecode
                    costs[name].append(found)
    print(f"{files} files")
    for name, all_ in costs.items():
        cpu, wall, first = (statistics.median(values) for values in zip(*all_, strict=True))
        print(f"{name}: {cpu / files * 1000:.2f} ms CPU a file, {wall:.2f} s in all, first row after {first:.2f} s")


if __name__ == "__main__":
    main()
