"""The cost of `lora-inspect compare` of three SDXL adapters, and of `lora-inspect resize` of one for Wan 14B.

    python benchmarks/compare_resize.py [--runs 3] [--blocks 40] [--folder FOLDER]

Writes three adapters of rank 32 in float16 for the 986 layers of SDXL's U-Net and its two text encoders, and one of
rank 128 in bfloat16 for 40 blocks of Wan 14B (400 layers, 5120 and 13824 wide; 1.2 GB), and runs each command once to
warm the cache and then in turn. Prints the medians of seconds, of the processor's seconds and of the largest memory.
Exits with 1 where compare takes more than 3 seconds, or resize more than 25 of the processor's seconds or 500 MB.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from one_processor import ROOT

Layers = dict[str, tuple[int, int]]
MOST_SECONDS, MOST_OF_PROCESSOR, MOST_MEMORY = 3.0, 25.0, 500.0
CONTEXT = 2048
# Width and number of the transformer's blocks at the places of SDXL's U-Net.
PLACES = {
    **{f"input_blocks_{place}_1": (width, count) for place, width, count in ((4, 640, 2), (5, 640, 2))},
    **{f"input_blocks_{place}_1": (1280, 10) for place in (7, 8)},
    "middle_block_1": (1280, 10),
    **{f"output_blocks_{place}_1": (1280, 10) for place in (0, 1, 2)},
    **{f"output_blocks_{place}_1": (640, 2) for place in (3, 4, 5)},
}
ENCODERS = {"lora_te1": (768, 12), "lora_te2": (1280, 32)}


def sdxl() -> Layers:
    layers: Layers = {}
    for place, (width, count) in PLACES.items():
        for name in ("proj_in", "proj_out"):
            layers[f"lora_unet_{place}_{name}"] = width, width
        for block in (f"lora_unet_{place}_transformer_blocks_{number}" for number in range(count)):
            for attention, context in (("attn1", width), ("attn2", CONTEXT)):
                for name, columns in (("q", width), ("k", context), ("v", context), ("out_0", width)):
                    layers[f"{block}_{attention}_to_{name}"] = width, columns
            layers[f"{block}_ff_net_0_proj"] = 8 * width, width
            layers[f"{block}_ff_net_2"] = width, 4 * width
    for encoder, (width, count) in ENCODERS.items():
        for layer in (f"{encoder}_text_model_encoder_layers_{number}" for number in range(count)):
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                layers[f"{layer}_self_attn_{name}"] = width, width
            layers |= {f"{layer}_mlp_fc1": (4 * width, width), f"{layer}_mlp_fc2": (width, 4 * width)}
    return layers


def wan(blocks: int) -> Layers:
    layers: Layers = {}
    for block in (f"lora_unet_blocks_{number}" for number in range(blocks)):
        for attention in ("self_attn", "cross_attn"):
            layers |= {f"{block}_{attention}_{name}": (5120, 5120) for name in "qkvo"}
        layers |= {f"{block}_ffn_0": (13824, 5120), f"{block}_ffn_2": (5120, 13824)}
    return layers


def commands(folder: str) -> Iterator[tuple[str, list[str]]]:
    place = {name: os.path.join(folder, f"{name}.safetensors") for name in ("sdxl0", "sdxl1", "sdxl2", "wan", "out")}
    yield "compare", ["compare", *(place[f"sdxl{number}"] for number in range(3))]
    yield "resize", ["resize", place["wan"], "-o", place["out"], "--rank", "32", "--force"]


def write_all(folder: str, blocks: int) -> None:
    import torch
    from safetensors.torch import save_file

    files = {f"sdxl{number}": (sdxl(), 32, torch.float16, "sdxl_base_v1-0") for number in range(3)}
    files["wan"] = wan(blocks), 128, torch.bfloat16, "wan2.1_14b"
    for seed, (name, (layers, rank, dtype, model)) in enumerate(files.items()):
        numbers = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer, (rows, columns) in layers.items():
            down, up = torch.randn(rank, columns, generator=numbers), torch.randn(rows, rank, generator=numbers)
            tensors[f"{layer}.lora_down.weight"] = down.div(columns**0.5).to(dtype)
            tensors[f"{layer}.lora_up.weight"] = up.mul(0.01).to(dtype)
            tensors[f"{layer}.alpha"] = torch.tensor(rank / 2)
        save_file(tensors, os.path.join(folder, f"{name}.safetensors"), {"ss_base_model_version": model})


def taken(words: list[str]) -> tuple[float, float, float]:
    """The seconds, the processor's seconds and the largest memory in MB of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": ROOT}, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        # In a process of its own, as memory that is in use here counts as that of a new process.
        taken([__file__, "--write", folder, str(arguments.blocks)])
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name, _ in commands(folder)}
        for number in range(arguments.runs + 1):
            for name, words in commands(folder):
                one = taken(["-m", "lora_inspect", *words])
                found[name] += [one] if number else []
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    for name, (seconds, of_processor, memory) in medians.items():
        print(f"{name}: {seconds:.2f} s, {of_processor:.2f} s of the processor, {memory:.0f} MB")
    _, of_processor, memory = medians["resize"]
    sys.exit(medians["compare"][0] > MOST_SECONDS or of_processor > MOST_OF_PROCESSOR or memory > MOST_MEMORY)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_all(sys.argv[2], int(sys.argv[3]))
    else:
        main()
