"""The header of a GGUF file: metadata, and place, shape and type of each tensor. Standard library only.

Tensors have the dimensions of their own program; the file counts them from the last one. A LoRA adapter of llama.cpp
states alpha once for all modules.

For models, ComfyUI-GGUF and stable-diffusion.cpp keep the names of the original. llama.cpp has its own names and stores
the rows of some weights in another order. So a language model from such a file is no model under its own names.
"""

import re
from collections.abc import Iterator, Mapping

from lora_inspect.errors import DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.file_types import GGUF_MAGIC
from lora_inspect.files.gguf.gguf_format import (
    ADAPTER,
    ADAPTER_TYPE_KEY,
    AGAIN,
    ALIGNMENT,
    ALIGNMENT_KEY,
    ALPHA_KEY,
    ARCHITECTURE_KEY,
    ARRAY,
    FLOAT32,
    INVOCATION_KEY,
    LORA,
    MODEL,
    MOST_DIMENSIONS,
    MOST_DIMENSIONS_OF_PICTURES,
    OF_TOKENS,
    SHAPE_KEY,
    SHARDS_KEY,
    TENSOR_TYPES,
    TYPE_KEY,
    UINT32,
    VERSIONS,
    Cursor,
    Expect,
    Value,
    aligned,
    as_text,
    read_values,
)
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.dtypes import SIZES
from lora_inspect.files.safetensors.header import TensorInfo, count_elements
from lora_inspect.files.strict_json import KEY_BYTES, METADATA_KEYS, TENSORS, too_many_tensors

# A matrix of one row or one column may be stored without its last dimension, as ggml drops those of size 1.
_MATRICES = (".lora_a", ".lora_b")


class ExpectedKind(NamedTuple):
    """The kind of file to read: a check that refuses other kinds, and the maximum number of dimensions.

    `expect` raises LoraInspectError for another kind. `way_out` is the fix for a file with an unknown version or
    unknown element types.
    """

    expect: Expect
    dimensions: int
    way_out: str


class Contents(NamedTuple):
    """The metadata of a file, and its tensors in file order."""

    values: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_contents(source: InputFile, expected: ExpectedKind) -> Contents:
    """Return the whole header. Raises LoraInspectError if it is damaged or of another kind than `expected`."""
    cursor = Cursor(source, len(GGUF_MAGIC))
    _check_version(cursor, expected)
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    if tensors > TENSORS:
        raise too_many_tensors(cursor.file, tensors)
    if keys > METADATA_KEYS:
        raise DamagedError(
            cursor.file, f"its header has {keys:,} keys, but lora-inspect reads at most {METADATA_KEYS:,}", AGAIN
        )
    values = read_values(cursor, keys, expected.expect)
    entries = list(_read_entries(cursor, tensors, expected))
    return Contents(values, _with_ranges(cursor, entries, _alignment(cursor.file, values)))


def _check_version(cursor: Cursor, expected: ExpectedKind) -> None:
    version = cursor.number("I")
    if version in VERSIONS:
        return
    if version.bit_length() > 16:
        what = "is a GGUF file for big-endian machines"
    else:
        what = f"is a GGUF file of version {version}, and lora-inspect reads {VERSIONS[0]} to {VERSIONS[-1]}"
    raise DamagedError(cursor.file, f"it {what}", expected.way_out)


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    offset: int


def _read_entries(cursor: Cursor, tensors: int, expected: ExpectedKind) -> Iterator[_Entry]:
    for _ in range(tensors):
        name = cursor.text(KEY_BYTES)
        count = cursor.number("I")
        if not 1 <= count <= expected.dimensions:
            raise DamagedError(
                cursor.file, f"{name} has {count} dimensions, but lora-inspect reads 1 to {expected.dimensions}", AGAIN
            )
        dimensions = [cursor.number("Q") for _ in range(count)]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if name.endswith(_MATRICES) and count == 1:
            dimensions.append(1)
        shape, elements = tuple(reversed(dimensions)), count_elements(dimensions)
        known = TENSOR_TYPES.get(kind)
        if known is None:
            raise DamagedError(
                cursor.file,
                f"{name} has elements of ggml's type {kind}, which lora-inspect does not know",
                expected.way_out,
            )
        if elements >= SIZES or offset >= SIZES:
            raise DamagedError(cursor.file, f"the shape or place of {name} is beyond 63 bits", AGAIN)
        if dimensions[0] % known.block:
            raise DamagedError(
                cursor.file,
                f"{name} has rows of {dimensions[0]} numbers, but {known.name} needs whole blocks of {known.block}",
                AGAIN,
            )
        yield _Entry(name, shape, known.name, elements // known.block * known.bytes, offset)


def _with_ranges(cursor: Cursor, entries: list[_Entry], alignment: int) -> dict[str, TensorInfo]:
    """Return the tensors with their places, each after the one before it."""
    file, data = cursor.file, aligned(cursor.position, alignment)
    infos: dict[str, TensorInfo] = {}
    position = stop = data if entries else cursor.size
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
        start = data + entry.offset
        if start != position:
            relation = "overlaps the tensor before it" if start < position else "leaves a hole before it"
            raise DamagedError(file, f"{entry.name} {relation}, so the header is damaged", AGAIN)
        if entry.name in infos:
            raise DamagedError(file, f"its GGUF header has {entry.name} twice", "write the file again")
        stop = start + entry.nbytes
        infos[entry.name] = TensorInfo(entry.name, entry.dtype, entry.shape, file, start, stop, cursor.identity)
        position = aligned(stop, alignment)
    if not stop <= cursor.size <= max(position, stop):
        state = "truncated" if stop > cursor.size else "longer than its header says"
        raise DamagedError(
            file, f"its tensors end at byte {stop} and the file at byte {cursor.size}: it is {state}", AGAIN
        )
    return infos


def _alignment(file: str, values: dict[str, Value]) -> int:
    found = values.get(ALIGNMENT_KEY)
    if found is None:
        return ALIGNMENT
    if found.type != UINT32 or found.value.bit_count() != 1:
        raise DamagedError(file, f"its {ALIGNMENT_KEY} is {as_text(found.value)}, not a power of two", AGAIN)
    alignment: int = found.value
    return alignment


class GgufHeader(NamedTuple):
    """Tensors in file order, metadata as text, the file's identity, and the place of the alpha of all modules.

    `alpha` is None if there is none, or if it is 0: llama.cpp then multiplies by 1.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: Identity
    alpha: TensorInfo | None


def read_gguf(file: str) -> GgufHeader:
    """Return the header of an adapter. Raises LoraInspectError for a model, and if llama.cpp would not read it."""

    def expect(key: str, values: Mapping[str, Value]) -> None:
        if key.startswith(OF_TOKENS) or (key == TYPE_KEY and values[key].value != ADAPTER):
            raise _no_adapter(file, values)

    with InputFile(file) as source:
        way_out = "convert the adapter again with convert_lora_to_gguf.py of llama.cpp, with --outtype f32"
        values, tensors = read_contents(source, ExpectedKind(expect, MOST_DIMENSIONS, way_out))
        _check_adapter(file, values)
        alpha = values.get(ALPHA_KEY)
        return GgufHeader(
            tensors,
            {key: as_text(found.value) for key, found in values.items()},
            source.identity,
            _alpha(file, alpha, source.identity) if alpha else None,
        )


def _no_adapter(file: str, values: Mapping[str, Value]) -> LoraInspectError:
    """Return the error for a file that is something else by its metadata."""
    kind = values.get(TYPE_KEY)
    if kind is None or kind.value == MODEL:
        said = values.get(ARCHITECTURE_KEY)
        of = f" of the architecture {as_text(said.value)}" if said else ""
        return RefusedError(
            file,
            f"it is a GGUF model{of}, not an adapter",
            "give it to merge as the BASE with --dtype bf16 if it makes pictures or videos, or use the .safetensors "
            "version of a language model",
        )
    return RefusedError(
        file,
        f"it is a GGUF file of the type {as_text(kind.value)}, but lora-inspect reads only adapters",
        "use the .safetensors version of the model",
    )


def _check_adapter(file: str, values: dict[str, Value]) -> None:
    """Raise LoraInspectError if the metadata is not that of an adapter with a known change."""
    if TYPE_KEY not in values:
        raise _no_adapter(file, values)
    kind = values.get(ADAPTER_TYPE_KEY)
    if kind is None or kind.value != LORA:
        says = as_text(kind.value) if kind else "missing"
        raise RefusedError(file, f"it is a GGUF adapter, but its {ADAPTER_TYPE_KEY} is {says}, not {LORA}")
    if INVOCATION_KEY in values:
        raise RefusedError(
            file,
            f"it is an aLoRA adapter ({INVOCATION_KEY}), which acts from an invocation token on and changes no weight",
            "use it with llama.cpp",
        )


def _alpha(file: str, found: Value, identity: Identity) -> TensorInfo | None:
    """Return the place of alpha in the file; None for 0."""
    if found.type != FLOAT32:
        raise DamagedError(file, f"its {ALPHA_KEY} is {as_text(found.value)}, not a float32", AGAIN)
    return TensorInfo(ALPHA_KEY, "F32", (), file, found.start, found.start + 4, identity) if found.value else None


_OTHER_VERSION = "use the .safetensors version of the model"
# Blocks and the embedding of tokens as llama.cpp calls them.
_OF_LLAMA_CPP = re.compile(r"(?:^|\.)blk\.\d|^token_embd\.")


class GgufModel(NamedTuple):
    """Tensors in file order and in the shapes of the model, metadata as text, and the file's identity."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: Identity


def read_gguf_model(file: str) -> GgufModel:
    """Return the header of a model with its own tensor names. Raises LoraInspectError for any other file."""

    def expect(key: str, values: Mapping[str, Value]) -> None:
        if key.startswith(OF_TOKENS):
            raise _of_llama_cpp(file, values, key)
        if key == TYPE_KEY and values[key].value != MODEL:
            raise RefusedError(
                file, f"it is a GGUF file of the type {as_text(values[key].value)}, not a model", _OTHER_VERSION
            )
        if key == SHARDS_KEY and values[key].value != 1:
            raise RefusedError(
                file,
                f"it is one of {as_text(values[key].value)} parts of a GGUF model, which lora-inspect does not join",
                _OTHER_VERSION,
            )

    with InputFile(file) as source:
        values, tensors = read_contents(source, ExpectedKind(expect, MOST_DIMENSIONS_OF_PICTURES, _OTHER_VERSION))
        if named := next(filter(_OF_LLAMA_CPP.search, tensors), None):
            raise _of_llama_cpp(file, values, named)
        metadata = {key: as_text(found.value) for key, found in values.items() if not key.startswith(SHAPE_KEY)}
        shaped = {name: info._replace(shape=_shape(info, values)) for name, info in tensors.items()}
        return GgufModel(shaped, metadata, source.identity)


def _of_llama_cpp(file: str, values: Mapping[str, Value], named: str) -> LoraInspectError:
    said = values.get(ARCHITECTURE_KEY)
    what = f" ({ARCHITECTURE_KEY} {as_text(said.value)})" if said else ""
    return RefusedError(
        file,
        f"it is a GGUF file of llama.cpp{what}, as {named} shows, with other names than the model and some rows in "
        "another order",
        "merge into the .safetensors version and convert the result",
    )


def _shape(info: TensorInfo, values: Mapping[str, Value]) -> tuple[int, ...]:
    """Return the shape that the tensor has in the model."""
    said = values.get(f"{SHAPE_KEY}{info.name}")
    if said is None:
        return info.shape
    sizes = said.value if said.type == ARRAY else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        sizes = [-1]
    if count_elements(sizes) != info.numel:
        raise DamagedError(
            info.file,
            f"its {SHAPE_KEY}{info.name} is {as_text(said.value)}, not a shape of {info.numel} numbers",
            AGAIN,
        )
    return tuple(sizes)
