"""What it costs to start, to look at one adapter, and to look through a folder of them.

    python benchmarks/info.py [--runs 21] [--files 200] [--peer FOLDER] [--only start|folder]

Makes adapters of 300 modules with the names that trainers write, and runs `--help`, `info --json` and the screen of
`info` in turn with `python -c "import click"`, many times. Prints the medians of the ratios, round by round, with the
smallest one: on a machine that does something else as well, it says more. Then it lists a folder of such adapters of
several ranks, with two processes: CPU time a file, time to the first row, and, where safetensors-arch is installed, in
FOLDER or for this Python, the wall time as a multiple of what that takes. Exits with 1 where a median is above its
limit.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
# In multiples of the processor time of importing click, which a command for one file does without. The last two hold
# for every spelling of the names.
LIMITS = {"--help": 1.1, "info --json": 1.8, "info": 1.9}
# Milliseconds of CPU time a file, seconds to the first row, and multiples of what the other program takes.
CPU, FIRST_ROW, OVER_PEER = 4.5, 0.3, 3.0
MODULES, WORKERS = 300, 2
RANKS = (4, 8, 16, 32)
# Bytes at both ends of the factors by which the data of a file differ from those of all others.
OWN = 16
PEER = "safetensors_arch"
# What the script that pip writes does.
PROGRAM = [sys.executable, "-c", "from lora_inspect.start import main; main()"]
CLICK = [sys.executable, "-c", "import click"]


class Layer(NamedTuple):
    """A layer of a model: its dotted path, and what it has out and in."""

    path: str
    rows: int
    columns: int


def wan() -> Iterator[Layer]:
    """The layers of the blocks of Wan 14B."""
    for block in range(40):
        for attention in ("self_attn", "cross_attn"):
            for leaf in "qkvo":
                yield Layer(f"blocks.{block}.{attention}.{leaf}", 5120, 5120)
        yield Layer(f"blocks.{block}.ffn.0", 13824, 5120)
        yield Layer(f"blocks.{block}.ffn.2", 5120, 13824)


def flux() -> Iterator[Layer]:
    """The layers of the blocks of FLUX.1, as diffusers names them."""
    own, added = ("to_q", "to_k", "to_v", "to_out.0"), ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    for block in range(19):
        for leaf in (*own, *added):
            yield Layer(f"transformer_blocks.{block}.attn.{leaf}", 3072, 3072)
    for block in range(38):
        for leaf in own[:3]:
            yield Layer(f"single_transformer_blocks.{block}.attn.{leaf}", 3072, 3072)
        yield Layer(f"single_transformer_blocks.{block}.proj_out", 3072, 15360)


def kohya(layer: Layer, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    name = "lora_unet_" + layer.path.replace(".", "_")
    yield f"{name}.alpha", ()
    yield f"{name}.lora_down.weight", (rank, layer.columns)
    yield f"{name}.lora_up.weight", (layer.rows, rank)


def diffusers(layer: Layer, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"transformer.{layer.path}.lora_A.weight", (rank, layer.columns)
    yield f"transformer.{layer.path}.lora_B.weight", (layer.rows, rank)


def onetrainer(layer: Layer, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    name = "lora_transformer_" + layer.path.replace(".", "_")
    yield f"{name}.alpha", ()
    yield f"{name}.lora_down.weight", (rank, layer.columns)
    yield f"{name}.lora_up.weight", (layer.rows, rank)


SD_SCRIPTS = {"ss_network_module": "networks.lora_wan", "ss_base_model_version": "wan2.1", "ss_steps": "1600"}
# The names by which an adapter is called here: its layers, how they are spelled, and its metadata.
SPELLINGS = {
    "wan-kohya": (wan, kohya, SD_SCRIPTS),
    "flux-diffusers": (flux, diffusers, {"format": "pt"}),
    "flux-onetrainer": (flux, onetrainer, {}),
}


def write(path: str, spelling: str, rank: int) -> None:
    """Writes an adapter in bfloat16 whose alphas are its rank, and whose factors are a hole in the file.

    Around the hole are bytes of the file's own, as no two adapters that were trained have the same data.
    """
    layers, spelled, metadata = SPELLINGS[spelling]
    own = [layer for _, layer in zip(range(MODULES), layers(), strict=False)]
    tensors = sorted((named for layer in own for named in spelled(layer, rank)), key=lambda named: named[1] != ())
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, shape in tensors:
        end = start + 2 * (shape[0] * shape[1] if shape else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    alphas = sum(shape == () for _, shape in tensors)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + struct.pack("<f", rank)[2:] * alphas)
        begun = file.tell()
        own = os.urandom(OWN)
        file.write(own)
        file.seek(8 + len(text) + start - OWN)
        assert file.tell() >= begun + OWN, "there is room for the hole"
        file.write(own)


def environment(**others: str) -> dict[str, str]:
    """That of this process, but for what would have it measure the compiler, with this checkout in front."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "PYTHONPATH": ROOT, **others}


def seconds(command: list[str], env: dict[str, str]) -> float:
    """The processor time of a command."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
    return ended(process, command)


def ended(process: "subprocess.Popen[bytes]", command: list[str]) -> float:
    """The processor time of a process, to its end; exits where it fails."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def told(name: str, found: Iterable[float], limit: float, unit: str) -> bool:
    """Prints a median beside its limit; whether it is above."""
    values = list(found)
    median = statistics.median(values)
    print(f"{name}: {median:.2f} {unit} (limit {limit}; {min(values):.2f} to {max(values):.2f})", flush=True)
    return median > limit


def start(folder: str, runs: int) -> bool:
    """Measures one command after the other, round by round; whether one takes longer than it may."""
    commands, limits = {"--help": [*PROGRAM, "--help"]}, {"--help": LIMITS["--help"]}
    for spelling in SPELLINGS:
        path = os.path.join(folder, f"{spelling}.safetensors")
        write(path, spelling, RANKS[0])
        for words in ("info --json", "info"):
            name = f"{words} {spelling}"
            commands[name], limits[name] = [*PROGRAM, *words.split(), path], LIMITS[words]
    env = environment()
    for command in (CLICK, *commands.values()):
        seconds(command, env)
    ratios: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        unit = seconds(CLICK, env)
        for name, command in commands.items():
            ratios[name].append(seconds(command, env) / unit)
    above = [told(name, found, limits[name], "times importing click") for name, found in ratios.items()]
    return any(above)


class Listed(NamedTuple):
    """What a list of a folder took: wall time and the time to the first row in seconds, CPU time in all."""

    wall: float
    first_row: float
    cpu: float


def list_folder(command: list[str], env: dict[str, str], heads: int = 0) -> Listed:
    """Runs a command to its end; its first row stands behind so many lines."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    for _ in range(heads + 1):
        process.stdout.readline()
    first = time.perf_counter() - begun
    process.stdout.read()
    used = ended(process, command)
    return Listed(time.perf_counter() - begun, first, used)


def look_through(folder: str, runs: int, files: int, peer: str | None) -> bool:
    """Measures a list of a folder, beside the other program's if it is there; whether it takes longer than it may."""
    names = [*SPELLINGS]
    for number in range(files):
        write(os.path.join(folder, f"{number:04}.safetensors"), names[number % len(names)], RANKS[number % len(RANKS)])
    command, env = [*PROGRAM, "info", "--jobs", str(WORKERS), folder], environment()
    other, other_env = [sys.executable, "-m", PEER, folder], environment(**({"PYTHONPATH": peer} if peer else {}))
    has_peer = bool(peer) or find_spec(PEER) is not None
    list_folder(command, env)
    ours: list[Listed] = []
    ratios: list[float] = []
    for _ in range(runs):
        if has_peer:
            unit = list_folder(other, other_env).wall
        ours.append(list_folder(command, env, heads=1))
        if has_peer:
            ratios.append(ours[-1].wall / unit)
    above = told("CPU time a file", (1000 * one.cpu / files for one in ours), CPU, "ms")
    above |= told("first row", (one.first_row for one in ours), FIRST_ROW, "s")
    if not has_peer:
        print(f"{PEER} is not installed: pip install --target FOLDER {PEER.replace('_', '-')}, then --peer FOLDER")
        return above
    return told("folder", ratios, OVER_PEER, f"times {PEER}") or above


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--peer", metavar="FOLDER")
    parser.add_argument("--only", choices=("start", "folder"))
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "folder":
            failed |= start(folder, arguments.runs)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "start":
            failed |= look_through(folder, max(1, arguments.runs // 4), arguments.files, arguments.peer)
    sys.exit(failed)


if __name__ == "__main__":
    main()
