"""Synthetic checkpoints of real shape: a Wan-like transformer in bfloat16 and adapters for its block layers.

    python benchmarks/synthetic.py FOLDER [--blocks 30] [--rank 64]

writes base.safetensors (4.1 GB with 30 blocks) into FOLDER, and adapters for it: lora.safetensors, dora.safetensors,
columns.safetensors (DoRA over inputs) and one_block.safetensors. The bytes depend on the arguments alone.
"""

import argparse
import os
from collections.abc import Callable

import torch

from lora_inspect.files.safetensors.writer import TensorPlan, Writer
from lora_inspect.maths.tensors import to_bytes

Shape = tuple[int, ...]
WIDTH, FFN, TEXT, FREQUENCIES = 2048, 8192, 4096, 256


def base_shapes(blocks: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"patch_embedding.weight": (WIDTH, 16, 1, 2, 2)}
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


# Kinds of adapters, with the name and the shape, of (out, in), of what each module has beside a LoRA.
KINDS: dict[str, Callable[[Shape], dict[str, Shape]]] = {
    "lora": lambda shape: {},
    "dora": lambda shape: {"dora_layer.weight": (shape[0],)},
    "columns": lambda shape: {"dora_scale": (1, shape[1])},
}


def adapter_shapes(of_base: dict[str, Shape], rank: int, kind: str) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, shape in of_base.items():
        if name.startswith("blocks.") and name.endswith(".weight"):
            module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            shapes |= {f"{module}.lora_down.weight": (rank, shape[1]), f"{module}.lora_up.weight": (shape[0], rank)}
            shapes |= {f"{module}.alpha": ()} | {f"{module}.{own}": size for own, size in KINDS[kind](shape).items()}
    return shapes


def content(name: str, shape: Shape, rank: int, generator: torch.Generator) -> torch.Tensor:
    if name.endswith(".alpha"):
        return torch.tensor(rank / 2)
    noise = torch.randn(shape, generator=generator)
    if name.endswith((".dora_layer.weight", ".dora_scale")):
        return 1 + 0.02 * noise
    if name.endswith(".lora_up.weight"):
        return 0.02 * noise * torch.exp(-torch.arange(rank) * 4.0 / rank)  # a falling spectrum, as trained ones have
    return noise * (shape[-1] ** -0.5 if len(shape) > 1 else 0.02)


def write(path: str, shapes: dict[str, Shape], rank: int = 1) -> None:
    generator = torch.Generator().manual_seed(0)
    plans = [TensorPlan(name, "BF16", shape) for name, shape in shapes.items()]
    with Writer(path, plans, {"format": "pt"}) as writer:
        for plan in plans:
            writer.write(plan.name, [to_bytes(content(plan.name, plan.shape, rank, generator), "BF16")])


def write_inputs(folder: str, blocks: int, rank: int, larger: bool = False) -> dict[str, str]:
    """Paths by what is there: the base, its adapters by kind, and a LoRA of one block; what is there is taken as it is.

    `larger` adds a base of twice as many blocks, one whose largest tensor is four times as large, and the adapters of
    each.
    """
    bases = {"base": base_shapes(blocks)}
    if larger:
        wide = {"blocks.0.ffn.0.weight": (4 * FFN, WIDTH), "blocks.0.ffn.0.bias": (4 * FFN,)}
        bases |= {"twice": base_shapes(2 * blocks), "large": bases["base"] | wide}
    files = dict(bases)
    for base, shapes in bases.items():
        files |= {f"{kind} of {base}": adapter_shapes(shapes, rank, kind) for kind in KINDS}
    files["one block"] = {key: shape for key, shape in files["lora of base"].items() if "_blocks_0_" in key}
    paths = {}
    for name, shapes in files.items():
        paths[name] = os.path.join(folder, f"{name.replace(' ', '_').removesuffix('_of_base')}.safetensors")
        if not os.path.exists(paths[name]):
            write(paths[name], shapes, rank)
    return paths | {kind: paths[f"{kind} of base"] for kind in KINDS}


def write_all(folder: str, blocks: int, rank: int) -> tuple[str, str, str]:
    """Paths of base, LoRA and DoRA; what is there already is taken as it is."""
    paths = write_inputs(folder, blocks, rank)
    return paths["base"], paths["lora"], paths["dora"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--rank", type=int, default=64)
    arguments = parser.parse_args()
    os.makedirs(arguments.folder, exist_ok=True)
    print(*write_inputs(arguments.folder, arguments.blocks, arguments.rank).values(), sep="\n")
