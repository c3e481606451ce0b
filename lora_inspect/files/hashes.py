"""The hashes that loaders and sites look up, of tensors and of whole files.

`sshs_model_hash` and `sshs_legacy_hash` are taken of the file as the safetensors library would write it, with only the
metadata that begins with `ss_`. `modelspec.hash_sha256` is that of the data section, with 0x before it. The file also
compares the bytes of two tensors, a little of each at a time. Sources: `precalculate_safetensors_hashes` of sd-scripts,
and Stability AI's ModelSpec.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Content, chunks_of, encode_header, renamed
from lora_inspect.progress import Progress, silent

MODEL_HASH, LEGACY_HASH, SPEC_HASH = HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")

_LEGACY_START, _LEGACY_BYTES, _LEGACY_DIGITS = 0x100000, 0x10000, 8
_CHUNK = 1 << 22
# So many bytes of a file on a disk are hashed at a time: they stay near the processor.
_PIECE = 1 << 18


def sshs_hashes(
    contents: Sequence[Content], metadata: Mapping[str, str], progress: Progress = silent
) -> dict[str, str]:
    """Return both hashes of the tensors under their metadata keys; `progress` gets the number of bytes."""
    ordered = in_library_order(contents)
    ss_metadata = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    position = len(encode_header([content.plan for content in ordered], ss_metadata))
    model, legacy = hashlib.sha256(), hashlib.sha256()
    for chunk in chunks_of(ordered):
        model.update(chunk)
        first, last = _LEGACY_START - position, _LEGACY_START + _LEGACY_BYTES - position
        if last > 0 and first < len(chunk):
            legacy.update(chunk[max(first, 0) : last])
        position += len(chunk)
        progress(len(chunk))
    return {MODEL_HASH: model.hexdigest(), LEGACY_HASH: legacy.hexdigest()[:_LEGACY_DIGITS]}


def in_library_order(contents: Iterable[Content]) -> list[Content]:
    """Return the contents in the order of the safetensors library.

    That is by element type, the last of its enumeration first, then by name.
    """
    rank_of = {dtype: rank for rank, dtype in enumerate(BITS)}
    return sorted(contents, key=lambda content: (-rank_of[content.plan.dtype], content.plan.name))


def file_sha256(file: str, identity: Identity, progress: Progress = silent) -> str:
    """Return the hash of all bytes of a file, which sites call SHA256; `progress` gets the number of bytes."""
    digest = hashlib.sha256()
    with InputFile(file, identity) as source:
        for chunk in source.pieces(0, identity.bytes, _PIECE):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def sha256_behind(
    file: str,
    start: int,
    blank: Iterable[tuple[int, int]],
    identity: Identity | None = None,
    progress: Progress = silent,
) -> tuple[int, str]:
    """Return the size of a file, and the hash of its bytes from `start` on, with zeros in the ranges `blank`.

    With the `identity` of an earlier opening it must still be that file. `progress` gets the number of bytes.
    """
    digest = hashlib.sha256()
    with InputFile(file, identity) as source:
        size = source.identity.bytes
        for at in range(start, size, _CHUNK):
            chunk = source.read(at, min(_CHUNK, size - at))
            for first, last in blank:
                inside = range(max(first - at, 0), min(last - at, len(chunk)))
                chunk[inside.start : inside.start + len(inside)] = bytes(len(inside))
            digest.update(chunk)
            progress(len(chunk))
        source.check_unchanged()
    return size, digest.hexdigest()


def data_sha256(contents: Iterable[Content], progress: Progress = silent) -> str:
    """Return the hash of the data section of a file that holds them in this order, in 64 digits.

    ModelSpec's `modelspec.hash_sha256` is this with 0x before it. `progress` gets the number of bytes.
    """
    digest = hashlib.sha256()
    for chunk in chunks_of(contents):
        digest.update(chunk)
        progress(len(chunk))
    return digest.hexdigest()


def sha256(info: TensorInfo) -> str:
    """Return the hash of the bytes of a tensor as it is stored."""
    return data_sha256([renamed(info, info.name)])


def legacy_hash(infos: Iterable[TensorInfo], metadata: Mapping[str, str], padded: bool = True) -> str:
    """Return only `sshs_legacy_hash`, and read only the bytes that it covers.

    Libraries of 2023 did not yet pad their headers.
    """
    by_name = {info.name: info for info in infos}
    ordered = in_library_order(renamed(info, info.name) for info in by_name.values())
    ss_metadata = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    header = encode_header([content.plan for content in ordered], ss_metadata)
    position = len(header if padded else header.rstrip(b" "))
    digest = hashlib.sha256()
    for content in ordered:
        info = by_name[content.plan.name]
        first, last = max(_LEGACY_START - position, 0), min(_LEGACY_START + _LEGACY_BYTES - position, info.nbytes)
        if first < last:
            with InputFile(info.file, info.identity) as source:
                digest.update(source.read(info.start + first, last - first))
        position += info.nbytes
    return digest.hexdigest()[:_LEGACY_DIGITS]


class FileHashes(NamedTuple):
    """SHA-256 of a whole file and of its data, and the first digits of that of a piece after the first MiB."""

    whole: str
    data: str
    piece: str


def file_hashes(file: str, data_start: int, identity: Identity, progress: Progress = silent) -> FileHashes:
    """Return the SHA256 (AutoV2 is its first 10 digits), AutoV3 (the first 12) and AutoV1 of sites, in one read."""
    whole, data, legacy = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    with InputFile(file, identity) as source:
        start = 0
        for piece in source.pieces(0, identity.bytes, _CHUNK):
            chunk = memoryview(piece)
            whole.update(chunk)
            data.update(chunk[max(data_start - start, 0) :])
            first, last = _LEGACY_START - start, _LEGACY_START + _LEGACY_BYTES - start
            legacy.update(chunk[max(first, 0) : max(last, 0)])
            start += len(chunk)
            progress(len(chunk))
    return FileHashes(whole.hexdigest(), data.hexdigest(), legacy.hexdigest()[:_LEGACY_DIGITS])


# Both pieces stay in the second-level cache.
_PIECE = 1 << 18


def are_same_tensors(one: TensorInfo, other: TensorInfo) -> bool:
    """Return True if two tensors have the same element type, shape and bytes."""
    is_alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return is_alike and are_same_bytes(one, other, [(0, 0, one.nbytes)])


def are_same_bytes(one: TensorInfo, other: TensorInfo, ranges: Iterable[tuple[int, int, int]]) -> bool:
    """Return True if all `ranges` of bytes are equal in both tensors.

    A range is (first byte in `one`, first byte in `other`, count). Raises LoraInspectError if a file changed since its
    header was read.
    """
    buffers = bytearray(_PIECE), bytearray(_PIECE)
    with InputFile(one.file, one.identity) as first, InputFile(other.file, other.identity) as second:
        for start, its_start, count in ranges:
            for position in range(0, count, _PIECE):
                size = min(_PIECE, count - position)
                for buffer in buffers:
                    del buffer[size:]
                    buffer.extend(bytes(size - len(buffer)))
                first.read_into(one.start + start + position, buffers[0])
                second.read_into(other.start + its_start + position, buffers[1])
                if buffers[0] != buffers[1]:
                    return False
    return True
