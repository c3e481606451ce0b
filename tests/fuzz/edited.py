"""What an edit of the metadata may make of a file, told from the bytes before and after by the format alone."""

import hashlib
import json
from typing import Any

_DIGEST = 32
# The beginning of what stands at the top of a journal, up to the end of its line.
_MARK = b"A run of lora-inspect rewrites the header of the file"


def tensors_of(content: bytes) -> tuple[Any, bytes] | None:
    """A safetensors file but for its metadata: its entries, and the bytes behind its header; None for another file."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:
        return None
    if not isinstance(header, dict):
        return None
    entries = {key: value for key, value in header.items() if key != "__metadata__"}
    return {key: _fields_of(entry) for key, entry in entries.items()}, content[8 + length :]


def _fields_of(entry: Any) -> Any:
    """What the format has of a tensor: other fields mean nothing to anybody who reads it."""
    return [entry.get(name) for name in ("dtype", "shape", "data_offsets")] if isinstance(entry, dict) else entry


def values_of(content: bytes, key: str) -> list[str]:
    """The value of a key in a file's metadata, where it has one."""
    length = int.from_bytes(content[:8], "little")
    try:
        return [json.loads(content[8 : 8 + length])["__metadata__"][key]]
    except (ValueError, KeyError, TypeError):
        return []


def repaired(content: bytes, journal: bytes) -> bytes:
    """A file with the header that a dead run was replacing, where every byte of its own is from one of the two."""
    line = journal.find(b"\n") + 1
    headers = journal[line:-_DIGEST]
    half = len(headers) // 2
    old, new = headers[:half], headers[half:]
    is_whole = journal.startswith(_MARK) and hashlib.sha256(journal[:-_DIGEST]).digest() == journal[-_DIGEST:]
    head = content[:half]
    is_torn = len(head) == len(old) == len(new) and all(one in both for one, *both in zip(head, old, new, strict=True))
    return old + content[half:] if is_whole and is_torn and head != new else content


def is_journal(content: bytes) -> bool:
    """Whether it is a journal, or what a run that died at once has of one."""
    return content.startswith(_MARK) or _MARK.startswith(content)


def same_tensors(one: bytes, other: bytes) -> bool:
    """Whether two files differ in their metadata alone."""
    tensors = tensors_of(one)
    return tensors is not None and tensors == tensors_of(other)
