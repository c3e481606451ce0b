"""Bases of four layers in codecs that are only read, each with what the programs' own code makes of its weights.

Two layers are in the codec, and beside them a layer and a norm are plain numbers.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from gguf_files import write_model
from oracles import oracle
from safetensors.torch import save_file

OUT, IN, RANK = 96, 512, 4
# Blocks of the model, of which the last is plain.
CODED, PLAIN = ("blocks.0.attn.q", "blocks.1.attn.q"), "blocks.2.attn.q"


class Base(NamedTuple):
    """A base, and the weights that it stands for, by name, in float32."""

    path: str
    weights: dict[str, torch.Tensor]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def said(**description: Any) -> torch.Tensor:
    """JSON as a tensor of bytes."""
    return torch.tensor(list(json.dumps(description).encode()), dtype=torch.uint8)


def plain() -> dict[str, torch.Tensor]:
    return {f"{PLAIN}.weight": drawn(9, OUT, IN), "norm.weight": drawn(8, OUT)}


def nvfp4(folder: Path) -> Base:
    kitchen = oracle("comfy_kitchen")
    tensors, weights = plain(), plain()
    for seed, name in enumerate(CODED):
        weight = drawn(seed, OUT, IN)
        scale = weight.abs().max() / (448 * 6)
        codes, tiles = kitchen.quantize_nvfp4(weight, scale)
        tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": tiles, f"{name}.weight_scale_2": scale}
        tensors |= {f"{name}.comfy_quant": said(format="nvfp4"), f"{name}.input_scale": torch.tensor(0.5)}
        weights[f"{name}.weight"] = kitchen.dequantize_nvfp4(codes, scale, tiles, torch.float32)
    return saved(folder / "nvfp4.safetensors", tensors, weights)


def mxfp8(folder: Path) -> Base:
    kitchen = oracle("comfy_kitchen")
    tensors, weights = plain(), plain()
    for seed, name in enumerate(CODED):
        codes, tiles = kitchen.quantize_mxfp8(drawn(seed, OUT, IN))
        tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": tiles.view(torch.uint8)}
        tensors |= {f"{name}.comfy_quant": said(format="mxfp8")}
        weights[f"{name}.weight"] = kitchen.dequantize_mxfp8(codes, tiles, torch.float32)
    return saved(folder / "mxfp8.safetensors", tensors, weights)


def nf4(folder: Path) -> Base:
    return _bitsandbytes(folder, "nf4", nested=False)


def nf4_nested(folder: Path) -> Base:
    return _bitsandbytes(folder, "nf4", nested=True)


def fp4(folder: Path) -> Base:
    return _bitsandbytes(folder, "fp4", nested=True)


def _bitsandbytes(folder: Path, kind: str, nested: bool) -> Base:
    functional = oracle("bitsandbytes.functional")
    tensors, weights = plain(), plain()
    for seed, name in enumerate(CODED):
        codes, state = functional.quantize_4bit(drawn(seed, OUT, IN), quant_type=kind, compress_statistics=nested)
        own = {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        tensors |= {f"{name}.weight": codes, **own}
        weights[f"{name}.weight"] = functional.dequantize_4bit(codes, state)
    return saved(folder / f"{kind}.safetensors", tensors, weights)


def gguf(folder: Path, kind: str = "Q4_K") -> Base:
    number = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[number]
    tensors: dict[str, Any] = {name: (values.numpy(), None) for name, values in plain().items()}
    weights = plain()
    for seed, name in enumerate(CODED):
        blocks = np.random.default_rng(seed).integers(0, 256, (OUT, IN // block, size), dtype=np.uint8)
        blocks[..., 1], blocks[..., 3] = 0x2C, 0x2C  # scales of Q4_K, which are to be numbers
        tensors[f"{name}.weight"] = blocks.reshape(OUT, -1), number
        weights[f"{name}.weight"] = torch.from_numpy(dequantize(blocks.reshape(OUT, -1), number))
    return Base(write_model(folder / "gguf.gguf", tensors), weights)


def saved(path: Path, tensors: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> Base:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return Base(str(path), weights)


class Delta(NamedTuple):
    """What an adapter adds to a weight, and the sum of the magnitudes of its terms, in float64."""

    sum: torch.Tensor
    terms: torch.Tensor


def adapter(path: Path, names: tuple[str, ...] = (CODED[0], PLAIN), rank: int = RANK) -> dict[str, Delta]:
    """Writes a LoRA of some of the layers, and returns what it adds to each of them."""
    tensors, deltas = {}, {}
    for seed, name in enumerate(names):
        key = f"lora_unet_{name.replace('.', '_')}"
        down, up = drawn(100 + seed, rank, IN), 0.1 * drawn(200 + seed, OUT, rank)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
        scaled, inner = 2.0 / rank * up.double(), down.double()
        deltas[f"{name}.weight"] = Delta(scaled @ inner, scaled.abs() @ inner.abs())
    save_file(tensors, path)
    return deltas


KINDS = {"nvfp4": nvfp4, "mxfp8": mxfp8, "nf4": nf4, "nf4 nested": nf4_nested, "fp4": fp4, "GGUF": gguf}
