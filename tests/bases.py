"""Bases that are no plain file of floats: in shards, in codes, and the fp8 layers of trainers.

`write_base` writes shards with what lies beside them, and `write_adapter` an adapter for them. `coded` makes a weight
in each of the `SPELLINGS` that a merge writes again. `CODECS` are only read: each has what the programs' own code makes
of its weights. `quantise` makes a layer of fp8 as trainers do.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from adapters import NAMES, Factors, drawn
from oracles import oracle
from safetensors.torch import save_file
from torch import nn

# A base in shards, of which number i has 2 + i weights; every second one of them is changed.

SHARDS = [f"model-{number + 1:05}-of-00005.safetensors" for number in range(5)]
SHARD_SHAPE = (40, 32)


def shards(scale=0.1, dtype=torch.bfloat16, seed=0, shape=SHARD_SHAPE):
    return {
        file: {
            f"model.layers.{i}.mlp.e{j}.weight": (scale * drawn(100 * seed + 10 * i + j, *shape)).to(dtype)
            for j in range(2 + i)
        }
        for i, file in enumerate(SHARDS)
    }


def write_shards(folder, tensors, index="model.safetensors.index.json", **metadata):
    """The tensors by file, and the index of them."""
    for file, own in tensors.items():
        save_file({name: value.contiguous() for name, value in own.items()}, Path(folder) / file, metadata or None)
    weight_map = {name: file for file, own in tensors.items() for name in own}
    (Path(folder) / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_base(folder, tensors=None, **metadata):
    """A folder with an index, a configuration and a file in a folder of its own."""
    folder = Path(folder)
    (folder / "extra").mkdir(parents=True)
    write_shards(folder, shards() if tensors is None else tensors, format="pt", **metadata)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))
    (folder / "extra" / "words.txt").write_text("words")
    return str(folder)


def write_adapter(folder, seed=1, size=0.1, dora=False, modules=2, shape=SHARD_SHAPE):
    """A PEFT adapter that changes every second weight of each shard, or every one."""
    folder, (out, inputs), rank = Path(folder), shape, 4
    folder.mkdir()
    layers = {}
    for i in range(len(SHARDS)):
        for j in range(0, 2 + i, modules):
            own = 1000 * seed + 10 * i + j
            down, up = drawn(own, rank, inputs), size * drawn(own + 500, out, rank)
            magnitude = 0.6 + 0.1 * drawn(own + 700, out).abs() if dora else None
            layers[f"model.layers.{i}.mlp.e{j}"] = Factors(down, up, rank, magnitude)
    save_file(NAMES["peft"].tensors(layers, has_alpha=False), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "use_dora": dora, "target_modules": ["e0", "e1"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def content(folder):
    """Every file of a folder by its path in it, and each folder."""
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# A weight in codes with a scale, in every spelling that is written again.

Q = "blocks.0.attn.q"
OUT, IN = 160, 256
E4M3, E5M2, I8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
LARGEST = {E4M3: 448, E5M2: 57344, I8: 127}


def described(layer):
    """JSON as a tensor of bytes."""
    return torch.tensor(list(json.dumps(layer).encode()), dtype=torch.uint8)


def grid(shape, scale):
    """The scale with an entry for each element of a weight (out, columns)."""
    out, columns = shape
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(out, columns)
    if scale.dim() == 2 and scale.shape[1] > 1:
        return scale.repeat_interleave(128, 0)[:out].repeat_interleave(128, 1)[:, :columns]
    blocks = scale.reshape(out, -1)
    return blocks.repeat_interleave(columns // blocks.shape[1], dim=1)


def coded(dtype, name, shape, stored, beside, module=Q):
    """A weight in codes as a quantiser makes it, with what stands beside it."""
    weight, ones = drawn(3, OUT, IN), torch.ones(shape)
    size = torch.zeros(shape).flatten()
    owner = grid((OUT, IN), torch.arange(ones.numel()).reshape(shape)).flatten()
    size.scatter_reduce_(0, owner, weight.abs().flatten(), "amax")
    scale = (size / LARGEST[dtype]).to(stored).reshape(shape)
    exact = weight / grid((OUT, IN), scale.float())
    exact = (exact.round() if dtype == I8 else exact).clamp(-LARGEST[dtype], LARGEST[dtype])
    return {f"{module}.weight": exact.to(dtype), f"{module}.{name}": scale} | {
        key.replace("L.", f"{module}."): tensor for key, tensor in beside.items()
    }


BF16, F32 = torch.bfloat16, torch.float32
COMFY = {"L.comfy_quant": described({"format": "float8_e4m3fn"}), "L.input_scale": torch.tensor(0.5)}
MARKED = {"scaled_fp8": torch.empty(0, dtype=E4M3), "L.scale_input": torch.tensor(0.5)}
SPELLINGS = {
    "ComfyUI's first form": (E4M3, "scale_weight", (), F32, MARKED),
    "its marker of two": (E4M3, "scale_weight", (), F32, {"scaled_fp8": torch.zeros(2)}),
    "ComfyUI's second form": (E4M3, "weight_scale", (), F32, COMFY),
    "it in E5M2": (E5M2, "weight_scale", (), F32, {"L.comfy_quant": described({"format": "float8_e5m2"})}),
    "musubi's number": (E4M3, "scale_weight", (1,), BF16, {}),
    "musubi's rows": (E4M3, "scale_weight", (OUT, 1), BF16, {}),
    "musubi's blocks": (E4M3, "scale_weight", (OUT, IN // 64, 1), BF16, {}),
    "musubi's blocks in E5M2": (E5M2, "scale_weight", (OUT, IN // 64, 1), torch.float16, {}),
    "Ideogram's rows": (E4M3, "weight_scale", (OUT,), F32, {}),
    "compressed-tensors' rows": (E4M3, "weight_scale", (OUT, 1), BF16, {}),
    "DeepSeek's blocks": (E4M3, "weight_scale_inv", (2, 2), F32, {}),
    "a number of Mistral's": (E4M3, "weight_scale_inv", (), BF16, {"L.activation_scale": torch.tensor(0.5)}),
    "int8 of the weight": (I8, "weight_scale", (), F32, {"L.comfy_quant": described({"format": "int8_tensorwise"})}),
    "int8 of rows": (I8, "weight_scale", (OUT, 1), F32, {"L.comfy_quant": described({"format": "int8_tensorwise"})}),
}


def decoded(tensors, name, module=Q):
    return tensors[f"{module}.weight"].double() * grid((OUT, IN), tensors[f"{module}.{name}"].double())


def bits(tensor):
    return tensor.flatten().view(torch.uint8)


# Bases of four layers in codecs that are only read: two are in the codec, beside a layer and a norm of plain numbers.

ROWS, COLUMNS = 96, 512
CODED, PLAIN = ("blocks.0.attn.q", "blocks.1.attn.q"), "blocks.2.attn.q"


class Base(NamedTuple):
    """A base, and the weights that it stands for, by name, in float32."""

    path: str
    weights: dict[str, torch.Tensor]


def plain() -> dict[str, torch.Tensor]:
    return {f"{PLAIN}.weight": drawn(9, ROWS, COLUMNS), "norm.weight": drawn(8, ROWS)}


def nvfp4(folder: Path) -> Base:
    kitchen = oracle("comfy_kitchen")
    tensors, weights = plain(), plain()
    for seed, name in enumerate(CODED):
        weight = drawn(seed, ROWS, COLUMNS)
        scale = weight.abs().max() / (448 * 6)
        codes, tiles = kitchen.quantize_nvfp4(weight, scale)
        tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": tiles, f"{name}.weight_scale_2": scale}
        tensors |= {f"{name}.comfy_quant": described({"format": "nvfp4"}), f"{name}.input_scale": torch.tensor(0.5)}
        weights[f"{name}.weight"] = kitchen.dequantize_nvfp4(codes, scale, tiles, torch.float32)
    return saved(folder / "nvfp4.safetensors", tensors, weights)


def mxfp8(folder: Path) -> Base:
    kitchen = oracle("comfy_kitchen")
    tensors, weights = plain(), plain()
    for seed, name in enumerate(CODED):
        codes, tiles = kitchen.quantize_mxfp8(drawn(seed, ROWS, COLUMNS))
        tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": tiles.view(torch.uint8)}
        tensors |= {f"{name}.comfy_quant": described({"format": "mxfp8"})}
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
        codes, state = functional.quantize_4bit(drawn(seed, ROWS, COLUMNS), quant_type=kind, compress_statistics=nested)
        own = {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        tensors |= {f"{name}.weight": codes, **own}
        weights[f"{name}.weight"] = functional.dequantize_4bit(codes, state)
    return saved(folder / f"{kind}.safetensors", tensors, weights)


def gguf(folder: Path, kind: str = "Q4_K") -> Base:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
    from gguf_files import write_model

    number = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[number]
    tensors: dict[str, Any] = {name: (values.numpy(), None) for name, values in plain().items()}
    weights = plain()
    for seed, name in enumerate(CODED):
        blocks = np.random.default_rng(seed).integers(0, 256, (ROWS, COLUMNS // block, size), dtype=np.uint8)
        blocks[..., 1], blocks[..., 3] = 0x2C, 0x2C  # scales of Q4_K, which are to be numbers
        tensors[f"{name}.weight"] = blocks.reshape(ROWS, -1), number
        weights[f"{name}.weight"] = torch.from_numpy(dequantize(blocks.reshape(ROWS, -1), number))
    return Base(write_model(folder / "gguf.gguf", tensors), weights)


def saved(path: Path, tensors: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> Base:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return Base(str(path), weights)


CODECS = {"nvfp4": nvfp4, "mxfp8": mxfp8, "nf4": nf4, "nf4 nested": nf4_nested, "fp4": fp4, "GGUF": gguf}


# Layers in fp8 with a scale, as trainers keep them.

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def dequantised(base):
    """The weight as a trainer's replacement of an fp8 Linear's forward computes it."""
    scale, weight = base.scale_weight, base.weight
    if scale.dim() < 3:
        return weight.to(scale.dtype) * scale
    return (weight.to(scale.dtype).view(weight.shape[0], scale.shape[1], -1) * scale).view(weight.shape)


def quantise(base, dtype, shape, compute):
    """Cuts the weight into fp8 codes and a scale_weight, and replaces forward on the instance, as trainers do."""
    weight = base.weight.detach()
    groups = weight.reshape(*shape[:2], -1) if len(shape) == 3 else weight
    peak = groups.abs().amax(dim=-1, keepdim=True) if len(shape) > 1 else groups.abs().max().reshape(shape)
    scale = (peak / torch.finfo(dtype).max * 2).to(compute)
    base.weight = nn.Parameter((groups / scale).to(dtype).view(weight.shape), requires_grad=False)
    base.register_buffer("scale_weight", scale)

    def forward(self, x):
        return F.linear(x, dequantised(self), self.bias)

    base.forward = forward.__get__(base, nn.Linear)
