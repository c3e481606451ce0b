"""GGUF files for tests: adapters as the library writes them, and headers byte by byte."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, Keys

STRING, FLOAT32, UINT32, ARRAY = 8, 6, 4, 9


def write_adapter(
    path: Path, tensors: Mapping[str, np.ndarray], alpha: float | None = 8.0, architecture: str = "llama", **more: Any
) -> str:
    """An adapter with the keys that llama.cpp asks for, by the library's own writer."""
    writer = GGUFWriter(path, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    if alpha is not None:
        writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    for key, value in more.items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_string(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def pair(module: str, out: int, inputs: int, rank: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The factors of a module, drawn."""
    drawn = np.random.default_rng(seed)
    return {
        f"{module}.weight.lora_a": drawn.normal(size=(rank, inputs)).astype(np.float32),
        f"{module}.weight.lora_b": drawn.normal(size=(out, rank)).astype(np.float32),
    }


def text(value: str | bytes) -> bytes:
    """A string of a header."""
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def string(key: str, value: str | bytes) -> bytes:
    """A key with a string."""
    return text(key) + struct.pack("<I", STRING) + text(value)


def number(key: str, kind: int, form: str, value: float) -> bytes:
    """A key with a number."""
    return text(key) + struct.pack(f"<I{form}", kind, value)


OF_ADAPTERS = (string("general.type", "adapter"), string("adapter.type", "lora"))


def entry(name: str, dimensions: Iterable[int], kind: int = 0, offset: int = 0) -> bytes:
    """What a header says of one tensor; the dimensions begin with that of a row."""
    sizes = list(dimensions)
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def header(
    values: Iterable[bytes] = OF_ADAPTERS,
    entries: Iterable[bytes] = (),
    data: int = 0,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file with `data` zeros as its tensors; `counts` are of tensors and of keys where they are to be wrong."""
    values, entries = list(values), list(entries)
    start = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(entries), len(values))))
    content = start + b"".join(values) + b"".join(entries)
    return content + bytes(-len(content) % alignment) + bytes(data)


def write_model(
    path: Path,
    tensors: Mapping[str, tuple[np.ndarray, GGMLQuantizationType | None]],
    architecture: str = "flux",
    shapes: Mapping[str, Iterable[int]] | None = None,
) -> str:
    """A model by the library's own writer: numbers, or bytes (rows, bytes of a row) with the type of their blocks.

    `shapes` are those that ComfyUI-GGUF notes for tensors whose numbers it has arranged in other rows.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_quantization_version(2)
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
