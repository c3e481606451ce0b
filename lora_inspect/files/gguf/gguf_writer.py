"""Writes a GGUF file with a LoRA adapter, atomically, as llama.cpp loads it. Standard library only."""

import struct
from collections.abc import Callable, Mapping, Sequence

from lora_inspect.errors import RefusedError
from lora_inspect.files.file_types import GGUF_MAGIC
from lora_inspect.files.gguf.gguf_format import (
    ADAPTER,
    ADAPTER_TYPE_KEY,
    ALIGNMENT,
    ALPHA_KEY,
    ARCHITECTURE_KEY,
    FLOAT32,
    LORA,
    MOST_DIMENSIONS,
    NAME_BYTES,
    STRING,
    TYPE_KEY,
    TYPE_NUMBERS,
    WRITTEN_VERSION,
    aligned,
)
from lora_inspect.files.input_file import Identity
from lora_inspect.files.outputs import new_file
from lora_inspect.files.safetensors.writer import Content, write_all


def write_gguf(
    path: str,
    architecture: str,
    alpha: float,
    contents: Sequence[Content],
    metadata: Mapping[str, str] | None = None,
    inputs: Mapping[str, Identity] | None = None,
    force: bool = False,
    prove: Callable[[str], None] | None = None,
) -> None:
    """Write the factors of an adapter, under llama.cpp's names, for models of its `architecture`.

    llama.cpp multiplies each product by `alpha`/rank, where alpha, a float32, is not 0. `metadata` are strings under
    their own keys. `inputs` are the source files of the contents, and must be unchanged when the output is complete;
    with `force` it replaces a file of its name. `prove` is called with the path of the complete file before it appears.
    Raises LoraInspectError for contents that the format has no place for, and if the disk refuses.
    """
    for content in contents:
        _check(path, content)
    names = [content.plan.name for content in contents]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RefusedError(path, f"two tensors would both have the name {twice}", "write one to a file of its own")
    with new_file(path, inputs, force, prove) as descriptor:
        write_all(descriptor, encode_gguf(architecture, alpha, contents, metadata or {}))
        for content in contents:
            for chunk in content.chunks():
                write_all(descriptor, chunk)
            write_all(descriptor, _padding(content.plan.nbytes))


def encode_gguf(architecture: str, alpha: float, contents: Sequence[Content], metadata: Mapping[str, str]) -> bytes:
    """Return the header, padded to the first tensor. Raises ValueError for a key that the format itself has."""
    own = {ARCHITECTURE_KEY: architecture, TYPE_KEY: ADAPTER, ADAPTER_TYPE_KEY: LORA}
    if taken := (own.keys() | {ALPHA_KEY}) & metadata.keys():
        raise ValueError(f"{taken.pop()} is said otherwise")
    strings = own | dict(metadata)
    values = [_text(key) + struct.pack("<I", STRING) + _text(value) for key, value in strings.items()]
    values.append(_text(ALPHA_KEY) + struct.pack("<If", FLOAT32, alpha))
    entries = []
    position = 0
    for content in contents:
        plan = content.plan
        sizes = plan.shape[::-1]
        counts = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        entries.append(_text(plan.name) + counts + struct.pack("<IQ", TYPE_NUMBERS[plan.dtype], position))
        position = aligned(position + plan.nbytes, ALIGNMENT)
    start = GGUF_MAGIC + struct.pack("<IQQ", WRITTEN_VERSION, len(entries), len(values))
    header = start + b"".join(values) + b"".join(entries)
    return header + _padding(len(header))


def _check(path: str, content: Content) -> None:
    """Raise LoraInspectError for a tensor that llama.cpp would not load."""
    name, dtype, shape = content.plan
    if dtype not in TYPE_NUMBERS:
        raise RefusedError(
            path, f"{name} is {dtype}, which a GGUF adapter cannot hold", "convert it to F32, F16 or BF16 first"
        )
    if not 1 <= len(shape) <= MOST_DIMENSIONS:
        raise RefusedError(path, f"{name} has {len(shape)} dimensions, but GGUF allows 1 to {MOST_DIMENSIONS}")
    if len(name.encode()) > NAME_BYTES:
        raise RefusedError(path, f"{name} is longer than the {NAME_BYTES} bytes that llama.cpp allows for a name")


def _padding(length: int) -> bytes:
    return bytes(aligned(length, ALIGNMENT) - length)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
