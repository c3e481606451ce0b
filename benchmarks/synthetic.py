"""Synthetic checkpoints of real shape: a Wan-like transformer in bfloat16 and adapters for its block layers.

    python benchmarks/synthetic.py FOLDER [--blocks 30] [--rank 64]

writes base.safetensors (4.1 GB with 30 blocks), lora.safetensors and dora.safetensors into FOLDER. The bytes
depend on the arguments alone.
"""

import argparse
import os

import torch

from lora_inspect.files.writer import TensorPlan, Writer
from lora_inspect.maths.tensor_reader import to_bytes

WIDTH, FFN, TEXT, FREQUENCIES = 2048, 8192, 4096, 256


def base_shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"patch_embedding.weight": (WIDTH, 16, 1, 2, 2)}
    for name, rows, columns in (
        ("text_embedding.0", WIDTH, TEXT),
        ("text_embedding.2", WIDTH, WIDTH),
        ("time_embedding.0", WIDTH, FREQUENCIES),
        ("time_embedding.2", WIDTH, WIDTH),
        ("time_projection.1", 6 * WIDTH, WIDTH),
    ):
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for block in range(blocks):
        shapes[f"blocks.{block}.modulation"] = (1, 6, WIDTH)
        for attention in ("self_attn", "cross_attn"):
            for leaf in "qkvo":
                path = f"blocks.{block}.{attention}.{leaf}"
                shapes |= {f"{path}.weight": (WIDTH, WIDTH), f"{path}.bias": (WIDTH,)}
        shapes |= {f"blocks.{block}.ffn.0.weight": (FFN, WIDTH), f"blocks.{block}.ffn.0.bias": (FFN,)}
        shapes |= {f"blocks.{block}.ffn.2.weight": (WIDTH, FFN), f"blocks.{block}.ffn.2.bias": (WIDTH,)}
    return shapes | {"head.head.weight": (64, WIDTH), "head.head.bias": (64,)}


def adapter_shapes(blocks: int, rank: int, dora: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in base_shapes(blocks).items():
        if name.startswith("blocks.") and name.endswith(".weight"):
            module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            shapes |= {f"{module}.lora_down.weight": (rank, shape[1]), f"{module}.lora_up.weight": (shape[0], rank)}
            shapes |= {f"{module}.alpha": ()} | ({f"{module}.dora_layer.weight": (shape[0],)} if dora else {})
    return shapes


def content(name: str, shape: tuple[int, ...], rank: int, generator: torch.Generator) -> torch.Tensor:
    if name.endswith(".alpha"):
        return torch.tensor(rank / 2)
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".dora_layer.weight"):
        return 1 + 0.02 * noise
    if name.endswith(".lora_up.weight"):
        return 0.02 * noise * torch.exp(-torch.arange(rank) * 4.0 / rank)  # a falling spectrum, as trained ones have
    return noise * (shape[-1] ** -0.5 if len(shape) > 1 else 0.02)


def write(path: str, shapes: dict[str, tuple[int, ...]], rank: int = 1) -> None:
    generator = torch.Generator().manual_seed(0)
    plans = [TensorPlan(name, "BF16", shape) for name, shape in shapes.items()]
    with Writer(path, plans, {"format": "pt"}) as writer:
        for plan in plans:
            writer.write(plan.name, [to_bytes(content(plan.name, plan.shape, rank, generator), "BF16")])


def write_all(folder: str, blocks: int, rank: int) -> tuple[str, str, str]:
    """Paths of base, LoRA and DoRA; what is there already is taken as it is."""
    base, lora, dora = (os.path.join(folder, f"{name}.safetensors") for name in ("base", "lora", "dora"))
    for path, shapes in (
        (base, base_shapes(blocks)),
        (lora, adapter_shapes(blocks, rank, dora=False)),
        (dora, adapter_shapes(blocks, rank, dora=True)),
    ):
        if not os.path.exists(path):
            write(path, shapes, rank)
    return base, lora, dora


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--rank", type=int, default=64)
    arguments = parser.parse_args()
    os.makedirs(arguments.folder, exist_ok=True)
    print(*write_all(arguments.folder, arguments.blocks, arguments.rank), sep="\n")
