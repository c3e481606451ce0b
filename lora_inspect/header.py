"""The header of one .safetensors file, with every rule of the format checked. Standard library only."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from lora_inspect.dtypes import BITS
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.foreign import START_BYTES, refuse_foreign
from lora_inspect.input_file import Identity, InputFile
from lora_inspect.json_text import parse_json

MAX_HEADER_BYTES = 100_000_000  # the safetensors library refuses larger headers


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
        length = int.from_bytes(start[:8], "little")
        if length > MAX_HEADER_BYTES or length > size - 8:
            raise LoraInspectError(
                f"{file}: its first 8 bytes announce a header of {length} bytes, but the file has {size} and a "
                f"header at most {MAX_HEADER_BYTES}: it is truncated or no safetensors file; fetch it again."
            )
        header = bytes(source.read(8, length))
    tensors, metadata = _parse_header(file, header, 8 + length, source.identity)
    return tensors, metadata, source.identity


def count_elements(shape: Iterable[int]) -> int:
    """Product of the dimensions; 1 for a scalar."""
    count = 1
    for dimension in shape:
        count *= dimension
    return count


def _parse_header(
    file: str, header: bytes, data_start: int, identity: Identity
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        entries = parse_json(header)
    except ValueError:
        raise LoraInspectError(
            f"{file}: its header is not JSON, so it is no safetensors file; fetch it again."
        ) from None
    if not isinstance(entries, dict):
        raise LoraInspectError(
            f"{file}: its header is not a JSON object, so it is no safetensors file; fetch it again."
        )
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LoraInspectError(f"{file}: its __metadata__ is not a map of strings to strings; write the file anew.")
    if not _is_unicode([*entries, *metadata, *metadata.values()]):
        raise LoraInspectError(f"{file}: its header holds text that is not Unicode; write the file anew.")
    tensors = [_parse_entry(file, name, entry, data_start, identity) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.start, info.stop))
    position = data_start
    for info in tensors:
        if info.start != position:
            relation = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise LoraInspectError(f"{file}: {info.name} {relation}, so the header is damaged; fetch the file again.")
        position = info.stop
    size = identity.bytes
    if position != size:
        state = "truncated" if position > size else "longer than its header says"
        raise LoraInspectError(
            f"{file}: its tensors end at byte {position} and the file at byte {size}: it is {state}; fetch it again."
        )
    return {info.name: info for info in tensors}, metadata


def _is_unicode(texts: Iterable[str]) -> bool:
    """Whether no text holds half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_entry(file: str, name: str, entry: Any, data_start: int, identity: Identity) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
    except (TypeError, KeyError, ValueError):
        raise LoraInspectError(
            f"{file}: the header entry of {name} lacks dtype, shape or data_offsets; fetch the file again."
        ) from None
    if dtype not in BITS:
        raise LoraInspectError(
            f"{file}: {name} has the unknown dtype {dtype!r}; fetch it again or update lora-inspect."
        )
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise LoraInspectError(f"{file}: the shape or range of {name} is not made of whole numbers; fetch it again.")
    bits = count_elements(shape) * BITS[dtype]
    if bits % 8 or stop - start != bits // 8:
        raise LoraInspectError(
            f"{file}: {name} has {stop - start} bytes, which is not what {dtype} {list(shape)} needs; fetch it again."
        )
    return TensorInfo(name, dtype, tuple(shape), file, data_start + start, data_start + stop, identity)
