"""The header of one .safetensors file, with every rule of the format checked. Standard library only."""

from collections.abc import Iterable, Mapping
from itertools import repeat
from math import prod
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple, made
from lora_inspect.files.bounds import HEADER_BYTES, TENSORS, too_many_tensors
from lora_inspect.files.file_types import START_BYTES, refuse_foreign
from lora_inspect.files.garbage import without_collecting
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.dtypes import BITS, SIZES
from lora_inspect.files.safetensors.header_recovery import refuse_torn
from lora_inspect.files.safetensors.plain_header import LONGEST, read_plain

# What stands before the text of a header: its length, as a number without a sign.
LENGTH_BYTES = 8
# Dimensions and positions are counted with a sign by torch, numpy and the system (`SIZES`), and without by the library.
_BEYOND_UNSIGNED = 1 << 64


class TensorInfo(NamedTuple):
    """One tensor of a file, unread: `start` and `stop` are byte positions in `file`.

    `identity` says which file that was when its header was read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int
    identity: Identity | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return count_elements(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return self.stop - self.start


def read_header(file: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors in file order and metadata of one .safetensors file, with every rule of the format checked.

    Raises LoraInspectError where the file cannot be what its name says.
    """
    tensors, metadata, _ = identified_header(file)
    return tensors, metadata


def identified_header(file: str) -> tuple[dict[str, TensorInfo], dict[str, str], Identity]:
    """What `read_header` reads, and which file it was."""
    with InputFile(file) as source:
        size = source.identity.bytes
        start = bytes(source.read(0, min(size, START_BYTES)))
        refuse_foreign(file, start, size)
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if length > HEADER_BYTES or length > size - LENGTH_BYTES:
            raise LoraInspectError(
                f"{file}: its first 8 bytes announce a header of {length} bytes, but the file has {size} and a "
                f"header at most {HEADER_BYTES}: it is truncated or no safetensors file; fetch it again."
            )
        refuse_torn(source, LENGTH_BYTES + length)
        try:
            with without_collecting():
                tensors, metadata = _read_plain(source, length) or _read_text(source, length)
        finally:
            source.check_unchanged()
    return tensors, metadata, source.identity


def count_elements(shape: Iterable[int]) -> int:
    """Product of the dimensions; 1 for a scalar."""
    return prod(shape)


def _read_plain(source: InputFile, length: int) -> tuple[dict[str, TensorInfo], dict[str, str]] | None:
    """What `_read_text` finds in a header as nearly all programs write it; None for any other."""
    file, identity, data_start = source.path, source.identity, LENGTH_BYTES + length
    if length > LONGEST:
        return None
    plain = read_plain(source.read(LENGTH_BYTES, length), identity.bytes - data_start)
    if plain is None:
        return None
    (names, dtypes, shapes, starts, stops), metadata = plain
    ranges = [data_start + start for start in starts], [data_start + stop for stop in stops]
    rows = zip(names, dtypes, shapes, repeat(file), *ranges, repeat(identity))
    return dict(zip(names, made(TensorInfo, rows), strict=True)), metadata


def _read_text(source: InputFile, length: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    from lora_inspect.files.safetensors.strict_header import HeaderText

    file, size, data_start = source.path, source.identity.bytes, LENGTH_BYTES + length
    text = HeaderText(source, LENGTH_BYTES, length)
    found: dict[str, TensorInfo] = {}
    for name, entry in text.entries():
        if name in found:
            raise text.repeats(name)
        found[name] = _parse_entry(file, name, entry, data_start, source.identity)
    if len(found) > TENSORS:
        raise too_many_tensors(file, len(found))
    tensors = sorted(found.values(), key=lambda info: (info.start, info.stop))
    position = data_start
    for info in tensors:
        if info.start != position:
            relation = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise LoraInspectError(f"{file}: {info.name} {relation}, so the header is damaged; fetch the file again.")
        position = info.stop
    if position != size:
        state = "truncated" if position > size else "longer than its header says"
        raise LoraInspectError(
            f"{file}: its tensors end at byte {position} and the file at byte {size}: it is {state}; fetch it again."
        )
    return {info.name: info for info in tensors}, text.metadata


def _parse_entry(file: str, name: str, entry: Mapping[str, Any], data_start: int, identity: Identity) -> TensorInfo:
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype is None or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        from lora_inspect.files.safetensors.strict_header import incomplete_entry

        raise incomplete_entry(file, name)
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise LoraInspectError(
            f"{file}: {name} has the unknown dtype {dtype!r}; fetch it again or update lora-inspect."
        )
    for number in (*shape, *offsets):
        if type(number) is not int or not 0 <= number < SIZES:
            raise LoraInspectError(
                f"{file}: the shape or range of {name} is not made of whole numbers; fetch it again."
            )
    start, stop = offsets
    needed = count_elements(shape) * bits
    if needed % 8 or stop - start != needed // 8:
        raise LoraInspectError(
            f"{file}: {name} has {stop - start} bytes, which is not what {dtype} {list(shape)} needs; fetch it again."
        )
    if not needed and count_elements(shape[: shape.index(0)]) >= _BEYOND_UNSIGNED:
        raise LoraInspectError(f"{file}: the shape {shape} of {name} is beyond 64 bits; fetch it again.")
    return TensorInfo(name, dtype, tuple(shape), file, data_start + start, data_start + stop, identity)
