"""The header of a GGUF file that holds a LoRA adapter, as llama.cpp reads it. Standard library only.

The header says alpha once for all modules. Tensors have the dimensions of the program that they come from, which the
file counts from the last one.
"""

from collections.abc import Iterator

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.bounds import KEY_BYTES, METADATA_KEYS, TENSORS, too_many_tensors
from lora_inspect.files.gguf_format import (
    ADAPTER_TYPE_KEY,
    ALIGNMENT,
    ALIGNMENT_KEY,
    ALPHA_KEY,
    FLOAT32,
    INVOCATION_KEY,
    LORA,
    MAGIC,
    MOST_DIMENSIONS,
    TENSOR_TYPES,
    TYPE_KEY,
    UINT32,
    VERSIONS,
    aligned,
)
from lora_inspect.files.gguf_metadata import AGAIN, Cursor, Value, as_text, no_adapter, read_values
from lora_inspect.files.header import TensorInfo, count_elements
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.records import NamedTuple

_BEYOND = 1 << 63
# A matrix of one row or one column may be stored without its last dimension, as ggml drops those of size 1.
_MATRICES = (".lora_a", ".lora_b")


class GgufHeader(NamedTuple):
    """Tensors in file order, metadata as text, which file it was, and where the alpha of all modules stands.

    `alpha` is None where there is none, or 0: llama.cpp multiplies by 1 then.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: Identity
    alpha: TensorInfo | None


def read_gguf(file: str) -> GgufHeader:
    """The header of an adapter; raises LoraInspectError for a model, and for what llama.cpp would not read."""
    with InputFile(file) as source:
        cursor = Cursor(source, len(MAGIC))
        _check_version(file, int.from_bytes(cursor.take(4), "little"))
        tensors, keys = cursor.number("Q"), cursor.number("Q")
        if tensors > TENSORS:
            raise too_many_tensors(file, tensors)
        if keys > METADATA_KEYS:
            raise LoraInspectError(f"{file}: its header has {keys:,} keys, {METADATA_KEYS:,} at most; {AGAIN}.")
        values = read_values(cursor, keys)
        _check_adapter(file, values)
        entries = list(_read_entries(cursor, tensors))
        infos = _with_ranges(cursor, entries, _alignment(file, values))
        alpha = values.get(ALPHA_KEY)
        return GgufHeader(
            infos,
            {key: as_text(found.value) for key, found in values.items()},
            source.identity,
            _alpha(file, alpha, source.identity) if alpha else None,
        )


def _check_version(file: str, version: int) -> None:
    if version in VERSIONS:
        return
    if version.bit_length() > 16:
        what = "is a GGUF file for big-endian machines"
    else:
        what = f"is a GGUF file of version {version}, and {VERSIONS[0]} to {VERSIONS[-1]} are known"
    raise LoraInspectError(f"{file}: it {what}; convert the adapter anew with convert_lora_to_gguf.py of llama.cpp.")


def _check_adapter(file: str, values: dict[str, Value]) -> None:
    """Raises LoraInspectError where the metadata is not that of an adapter whose change is known."""
    if TYPE_KEY not in values:
        raise no_adapter(file, values)
    kind = values.get(ADAPTER_TYPE_KEY)
    if kind is None or kind.value != LORA:
        says = as_text(kind.value) if kind else "missing"
        raise LoraInspectError(f"{file}: it is a GGUF adapter whose {ADAPTER_TYPE_KEY} is {says}, not {LORA}.")
    if INVOCATION_KEY in values:
        raise LoraInspectError(
            f"{file}: it is an aLoRA adapter ({INVOCATION_KEY}), which acts from an invocation token on and is no "
            "change of a weight; use it with llama.cpp."
        )


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    offset: int


def _read_entries(cursor: Cursor, tensors: int) -> Iterator[_Entry]:
    for _ in range(tensors):
        name = cursor.text(KEY_BYTES)
        count = cursor.number("I")
        if not 1 <= count <= MOST_DIMENSIONS:
            raise LoraInspectError(
                f"{cursor.file}: {name} has {count} dimensions, 1 to {MOST_DIMENSIONS} are known; {AGAIN}."
            )
        dimensions = [cursor.number("Q") for _ in range(count)]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if name.endswith(_MATRICES) and count == 1:
            dimensions.append(1)
        shape, elements = tuple(reversed(dimensions)), count_elements(dimensions)
        known = TENSOR_TYPES.get(kind)
        if known is None:
            raise LoraInspectError(
                f"{cursor.file}: {name} has elements of ggml's type {kind}, which is not known here; convert the "
                "adapter anew with --outtype f32."
            )
        if elements >= _BEYOND or offset >= _BEYOND:
            raise LoraInspectError(f"{cursor.file}: the shape or place of {name} is beyond 63 bits; {AGAIN}.")
        if dimensions[0] % known.block:
            raise LoraInspectError(
                f"{cursor.file}: {name} has rows of {dimensions[0]} numbers, which are no blocks of {known.block}, as "
                f"{known.name} has them; {AGAIN}."
            )
        yield _Entry(name, shape, known.name, elements // known.block * known.bytes, offset)


def _with_ranges(cursor: Cursor, entries: list[_Entry], alignment: int) -> dict[str, TensorInfo]:
    """The tensors with their places, each behind the one before it."""
    file, data = cursor.file, aligned(cursor.position, alignment)
    infos: dict[str, TensorInfo] = {}
    position = stop = data if entries else cursor.size
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
        start = data + entry.offset
        if start != position:
            relation = "overlaps the tensor before it" if start < position else "leaves a hole before it"
            raise LoraInspectError(f"{file}: {entry.name} {relation}, so the header is damaged; {AGAIN}.")
        if entry.name in infos:
            raise LoraInspectError(f"{file}: its GGUF header has {entry.name} twice; write the file anew.")
        stop = start + entry.nbytes
        infos[entry.name] = TensorInfo(entry.name, entry.dtype, entry.shape, file, start, stop, cursor.identity)
        position = aligned(stop, alignment)
    if not stop <= cursor.size <= max(position, stop):
        state = "truncated" if stop > cursor.size else "longer than its header says"
        raise LoraInspectError(
            f"{file}: its tensors end at byte {stop} and the file at byte {cursor.size}: it is {state}; {AGAIN}."
        )
    return infos


def _alignment(file: str, values: dict[str, Value]) -> int:
    found = values.get(ALIGNMENT_KEY)
    if found is None:
        return ALIGNMENT
    if found.type != UINT32 or found.value.bit_count() != 1:
        raise LoraInspectError(f"{file}: its {ALIGNMENT_KEY} is {as_text(found.value)}, no power of two; {AGAIN}.")
    alignment: int = found.value
    return alignment


def _alpha(file: str, found: Value, identity: Identity) -> TensorInfo | None:
    """Where the number stands; None for 0."""
    if found.type != FLOAT32:
        raise LoraInspectError(f"{file}: its {ALPHA_KEY} is {as_text(found.value)}, no float32; {AGAIN}.")
    return TensorInfo(ALPHA_KEY, "F32", (), file, found.start, found.start + 4, identity) if found.value else None
