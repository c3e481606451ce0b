"""What the proof of a conversion costs: the time of `convert` over that of `convert --no-verify`.

    python benchmarks/proof.py [--rounds 7] [--rank 16] [--blocks 19]

Converts a LoRA of FLUX's double blocks, of real shapes, in turn with and without the proof, and prints the medians of
the ratios of processor time: under its own names, where factors keep their bytes, and into names that split its layers.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import save_file

WIDTH = 3072
LAYERS = {
    "img_attn_qkv": (3 * WIDTH, WIDTH),
    "img_attn_proj": (WIDTH, WIDTH),
    "img_mlp_0": (4 * WIDTH, WIDTH),
    "img_mlp_2": (WIDTH, 4 * WIDTH),
    "txt_attn_qkv": (3 * WIDTH, WIDTH),
}
TARGETS = {"the same names": (), "layers split": ("--to", "diffusers")}


def write(path: str, rank: int, blocks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for block in range(blocks):
        for layer, (out, inputs) in LAYERS.items():
            name = f"lora_unet_double_blocks_{block}_{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, inputs, generator=generator).half()
            tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank, generator=generator).half()
            tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path, {"ss_base_model_version": "flux1"})


def seconds(command: list[str]) -> float:
    """The processor time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=19)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter, output = (os.path.join(folder, f"{name}.safetensors") for name in ("adapter", "output"))
        write(adapter, arguments.rank, arguments.blocks)
        convert = [sys.executable, "-m", "lora_inspect", "convert", adapter, "-o", output, "--force"]
        for name, options in TARGETS.items():
            command = [*convert, *options]
            seconds(command)
            ratios = [seconds(command) / seconds([*command, "--no-verify"]) for _ in range(arguments.rounds)]
            found = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name}: {statistics.median(ratios):.2f} of the time without the proof ({found})")


if __name__ == "__main__":
    main()
