"""What it costs to read one adapter of a folder, in milliseconds of CPU time and as a multiple of parsing its header.

    python benchmarks/reading.py [--files 40] [--rounds 3] [SCHEME...]

Writes adapters of about 300 modules with the metadata of a trainer, their tensors as holes, in the names of several
programs, and reads them one after the other in this process. `open` is the header, `inspect` is everything that a file
means, and `record` is that with what `info --json` says of it, the programs that read it included. Of each the best of
the rounds counts. `json.loads` is Python's parser on the same header.
"""

import argparse
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from lora_inspect.architectures import by_name
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.safetensors.writer import TensorPlan, encode_header
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import as_json

MODULES, WIDTH = 300, 3072
RANKS, ALPHAS = (4, 8, 16, 32), (4.0, 8.0, 16.0)
KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight", ".alpha"), (".lora_A.weight", ".lora_B.weight")
# What the files are called here: family, layout, prefix of the names, suffixes.
SCHEMES = {
    "wan in kohya's names": ("wan", "original", "lora_unet_", KOHYA),
    "wan in ComfyUI's names": ("wan", "original", "diffusion_model.", PEFT),
    "wan in diffusers' names": ("wan", "diffusers", "transformer.", PEFT),
    "flux in kohya's names": ("flux", "original", "lora_unet_", KOHYA),
    "flux in diffusers' names": ("flux", "diffusers", "transformer.", PEFT),
    "sdxl in kohya's names": ("sdxl", "original", "lora_unet_", KOHYA),
}


def modules_of(family: str, layout: str, prefix: str) -> Iterator[str]:
    """The names of the first modules, those of all blocks in turn."""
    (own,) = (one for one in by_name(family).layouts if one.name == layout)
    paths = [path for path in own.paths if path.count("{i}") == 1]
    for number in range(MODULES):
        path = paths[number % len(paths)].replace("{i}", str(number // len(paths) % 40))
        yield prefix + (path.replace(".", "_") if prefix.endswith("_") else path)


def metadata(number: int, rank: int, alpha: float) -> dict[str, str]:
    tags = json.dumps({f"{at}_set": {f"tag {word}": word for word in range(100)} for at in range(2)})
    options = {f"ss_option_{at}": "None" for at in range(40)}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_output_name": f"number {number}",
        "ss_tag_frequency": tags,
        **options,
    }


def write(path: str, number: int, names: Sequence[str], suffixes: Sequence[str]) -> None:
    rank, alpha = RANKS[number % len(RANKS)], ALPHAS[number % len(ALPHAS)]
    shapes = dict(zip(suffixes, ((rank, WIDTH), (WIDTH, rank), ()), strict=False))
    plans = [TensorPlan(name + suffix, "F32", shape) for name in names for suffix, shape in shapes.items()]
    plans = sorted({plan.name: plan for plan in plans}.values())
    header = encode_header(plans, metadata(number, rank, alpha) if ".alpha" in suffixes else {"format": "pt"})
    with open(path, "wb") as file:
        file.write(header)
        for plan in plans:
            if plan.shape:
                file.seek(plan.nbytes, os.SEEK_CUR)
            else:
                file.write(struct.pack("<f", alpha))
        file.truncate(file.tell())


def parse(path: str) -> object:
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def milliseconds(read: Callable[[str], object], files: Sequence[str], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for file in files:
            read(file)
        found.append((time.process_time() - start) * 1e3 / len(files))
    return min(found)


STAGES: dict[str, Callable[[str], object]] = {
    "json.loads": parse,
    "open": open_checkpoint,
    "inspect": inspect,
    "record": lambda path: json.dumps(as_json(inspect(path))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scheme", nargs="*", choices=[*SCHEMES, []], default=[])
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{'ms of CPU a file':26}" + "".join(f"{stage:>18}" for stage in STAGES))
    for scheme in arguments.scheme or SCHEMES:
        family, layout, prefix, suffixes = SCHEMES[scheme]
        names = list(modules_of(family, layout, prefix))
        with tempfile.TemporaryDirectory() as folder:
            files = [os.path.join(folder, f"{number}.safetensors") for number in range(arguments.files)]
            for number, file in enumerate(files):
                write(file, number, names, suffixes)
            took = {stage: milliseconds(read, files, arguments.rounds) for stage, read in STAGES.items()}
        unit = took["json.loads"]
        print(f"{scheme:26}" + "".join(f"{took[stage]:9.2f} ({took[stage] / unit:5.1f})" for stage in STAGES))


if __name__ == "__main__":
    main()
