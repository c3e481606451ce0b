"""The messages between processes of one merge: an entry for each shard, and the claim of the folder.

Either may come from another run, another version or a disk that lost bytes: an invalid one counts as none.
"""

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.hashes import sha256_behind
from lora_inspect.files.input_file import Identity
from lora_inspect.files.json_files import read_json
from lora_inspect.merging.retention import ObservedWeight
from lora_inspect.progress import Progress, silent

_SCHEMA = 1
# The errors of a record that is missing, or whose bytes are not those that were written.
_INVALID = (LoraInspectError, LookupError, TypeError, ValueError, AttributeError)


def digest(parts: Mapping[str, Any]) -> str:
    """Return the hash of a record, in whatever order it is."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ShardEntry(NamedTuple):
    """The facts of a shard that other processes need.

    `made_of` are the facts that all shards share. `size` is the file's size and `data_start` its header's; `sha256` is
    the hash of the bytes after that, with zeros in the ranges `late`, which the weights of other shards decide.
    `settled` has, by the names of tensors, such content that its own weights decide for others. `counts` are its
    tensors by element type, `records` the observations of each weight, and `base_sha256` is the hash of the base's file
    if recorded.
    """

    made_of: Mapping[str, Any]
    size: int
    data_start: int
    sha256: str
    late: Sequence[tuple[int, int]]
    settled: Mapping[str, bytes]
    counts: Mapping[str, int]
    records: Sequence[Any]
    base_sha256: str | None = None

    def content(self) -> bytes:
        """Return the entry as it is written."""
        record = {
            "schema": _SCHEMA,
            "made_of": dict(self.made_of),
            "bytes": self.size,
            "data_start": self.data_start,
            "sha256": self.sha256,
            "late": [list(one) for one in self.late],
            "settled": {name: b64encode(content).decode() for name, content in self.settled.items()},
            "counts": dict(self.counts),
            "seen": list(self.records),
            "base_sha256": self.base_sha256,
        }
        return _with_digest(record)

    def observed(self) -> Iterator[ObservedWeight]:
        """Return the observation of each weight."""
        return map(ObservedWeight.of_record, self.records)

    def holds(self, file: str, identity: Identity | None = None, progress: Progress = silent) -> bool:
        """Return True if the file has every byte that it had when the entry was written, but for its header."""
        try:
            return sha256_behind(file, self.data_start, self.late, identity, progress) == (self.size, self.sha256)
        except LoraInspectError:
            return False


def read_entry(path: str) -> ShardEntry | None:
    """Return the entry at `path`; None if there is none, or a changed one."""
    try:
        record = _read_record(path)
        return ShardEntry(
            made_of=record["made_of"],
            size=_whole(record["bytes"]),
            data_start=_whole(record["data_start"]),
            sha256=str(record["sha256"]),
            late=[(_whole(start), _whole(stop)) for start, stop in record["late"]],
            settled={name: b64decode(content, validate=True) for name, content in record["settled"].items()},
            counts={name: _whole(count) for name, count in record["counts"].items()},
            records=record["seen"],
            base_sha256=record["base_sha256"],
        )
    except _INVALID:
        return None


def claim_of(parts: Mapping[str, Any]) -> bytes:
    """Return the claim of a folder for the merge that makes these `parts`."""
    return _with_digest({"schema": _SCHEMA, "made_of": dict(parts)})


def read_claim(path: str) -> Mapping[str, Any] | None:
    """Return the parts of the merge that claimed the folder; None if nobody has, or where the claim is damaged."""
    try:
        found: Mapping[str, Any] = _read_record(path)["made_of"]
        return found
    except _INVALID:
        return None


def _with_digest(record: Mapping[str, Any]) -> bytes:
    return json.dumps({**record, "digest": digest(record)}, separators=(",", ":")).encode()


def _read_record(path: str) -> Any:
    """Return the record that `_with_digest` wrote to `path`; raises one of _INVALID if it was changed."""
    record, _ = read_json(path)
    if record["schema"] != _SCHEMA or record.pop("digest") != digest(record):
        raise ValueError(path)
    return record


def _whole(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is no count")
    return number
