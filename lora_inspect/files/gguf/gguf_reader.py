"""What the header of a GGUF file says: metadata, and the place, shape and type of each tensor. Standard library only.

Tensors have the dimensions of the program that they come from, which the file counts from the last one.
"""

from collections.abc import Iterator

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.bounds import KEY_BYTES, METADATA_KEYS, TENSORS, too_many_tensors
from lora_inspect.files.gguf.gguf_format import ALIGNMENT, ALIGNMENT_KEY, MAGIC, TENSOR_TYPES, UINT32, VERSIONS, aligned
from lora_inspect.files.gguf.gguf_metadata import AGAIN, Cursor, Expect, Value, as_text, read_values
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.dtypes import SIZES
from lora_inspect.files.safetensors.header import TensorInfo, count_elements

# A matrix of one row or one column may be stored without its last dimension, as ggml drops those of size 1.
_MATRICES = (".lora_a", ".lora_b")


class Expected(NamedTuple):
    """What a file is read as: what raises LoraInspectError for another one, and what is true of all of its kind.

    `anew` is the way out where the file is one of a version or with element types that are not known here.
    """

    expect: Expect
    dimensions: int
    anew: str


class Contents(NamedTuple):
    """The metadata of a file, and its tensors in file order."""

    values: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_contents(source: InputFile, expected: Expected) -> Contents:
    """The whole header; raises LoraInspectError where it is damaged or another one than `expected`."""
    cursor = Cursor(source, len(MAGIC))
    _check_version(cursor, expected)
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    if tensors > TENSORS:
        raise too_many_tensors(cursor.file, tensors)
    if keys > METADATA_KEYS:
        raise LoraInspectError(f"{cursor.file}: its header has {keys:,} keys, {METADATA_KEYS:,} at most; {AGAIN}.")
    values = read_values(cursor, keys, expected.expect)
    entries = list(_read_entries(cursor, tensors, expected))
    return Contents(values, _with_ranges(cursor, entries, _alignment(cursor.file, values)))


def _check_version(cursor: Cursor, expected: Expected) -> None:
    version = cursor.number("I")
    if version in VERSIONS:
        return
    if version.bit_length() > 16:
        what = "is a GGUF file for big-endian machines"
    else:
        what = f"is a GGUF file of version {version}, and {VERSIONS[0]} to {VERSIONS[-1]} are known"
    raise LoraInspectError(f"{cursor.file}: it {what}; {expected.anew}.")


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    offset: int


def _read_entries(cursor: Cursor, tensors: int, expected: Expected) -> Iterator[_Entry]:
    for _ in range(tensors):
        name = cursor.text(KEY_BYTES)
        count = cursor.number("I")
        if not 1 <= count <= expected.dimensions:
            raise LoraInspectError(
                f"{cursor.file}: {name} has {count} dimensions, 1 to {expected.dimensions} are known; {AGAIN}."
            )
        dimensions = [cursor.number("Q") for _ in range(count)]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if name.endswith(_MATRICES) and count == 1:
            dimensions.append(1)
        shape, elements = tuple(reversed(dimensions)), count_elements(dimensions)
        known = TENSOR_TYPES.get(kind)
        if known is None:
            raise LoraInspectError(
                f"{cursor.file}: {name} has elements of ggml's type {kind}, which is not known here; {expected.anew}."
            )
        if elements >= SIZES or offset >= SIZES:
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
