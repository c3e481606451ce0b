"""Hashes in the metadata that are not those of the file's tensors."""

import hashlib
import re
from collections.abc import Iterator

from lora_inspect.checking.subject import Draft, Subject
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import (
    LEGACY_HASH,
    MODEL_HASH,
    SPEC_HASH,
    data_sha256,
    in_library_order,
    legacy_hash,
    sshs_hashes,
)
from lora_inspect.files.safetensors.writer import Content, in_file_order, renamed
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.evidence import RawProblem
from lora_inspect.sentences import shortened

STALE, EMPTY = "hash-stale", "hash-empty"

_OF_NOTHING = hashlib.sha256(b"").hexdigest()
_LYCORIS = "0x"


def stated_hashes(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for each stated hash of other tensors, of no bytes, or that is no hash at all."""
    if not _has_one_header(subject):
        return
    tensors = subject.checkpoint.tensors
    of_data = _DataHashes(subject)
    has_bytes = any(info.nbytes for info in tensors.values())
    model_is_true = False
    for key, digits in ((MODEL_HASH, 64), (SPEC_HASH, 64), (LEGACY_HASH, 8)):
        if key not in subject.metadata:
            continue
        stated = subject.metadata[key].strip().lower()
        plain = stated.removeprefix("0x")
        if not plain or (plain == _OF_NOTHING and has_bytes):
            yield RawProblem(EMPTY, f"{key} is {'empty' if not plain else 'the hash of no bytes at all'}", (key,))
        elif not re.fullmatch(f"[0-9a-f]{{{digits}}}", plain):
            yield RawProblem(STALE, f"{key} is '{shortened(stated)}', which is no hash", (key,))
        elif not subject.compares_hashes:
            continue
        elif key == LEGACY_HASH:
            # It hangs on the length of the header too, so where the tensors are proved it says nothing of them.
            infos = tensors.values()
            if not model_is_true and plain not in (
                legacy_hash(infos, subject.metadata),
                legacy_hash(infos, subject.metadata, padded=False),
            ):
                yield _stale(key, stated)
        elif plain in of_data:
            model_is_true = model_is_true or key == MODEL_HASH
        elif key != MODEL_HASH or not stated.startswith(
            _LYCORIS
        ):  # LyCORIS hashes in an order that the file does not show
            yield _stale(key, stated)


def _stale(key: str, stated: str) -> RawProblem:
    return RawProblem(STALE, f"{key} is {stated}, but the tensors of the file have another hash", (key,))


def _has_one_header(subject: Subject) -> bool:
    return len(subject.checkpoint.files) == 1 == len(subject.headers)


class _DataHashes:
    """The hashes of the data in each order that writers use, computed in turn until one matches."""

    def __init__(self, subject: Subject) -> None:
        self._waiting = _orders(subject.checkpoint)
        self._progress = subject.progress
        self._found: list[str] = []

    def __contains__(self, digits: str) -> bool:
        while digits not in self._found and self._waiting:
            self._found.append(data_sha256(self._waiting.pop(0), self._progress))
        return digits in self._found


def _orders(checkpoint: Checkpoint) -> list[list[Content]]:
    """Return the tensors in the order of the file, of the library and of the names, as far as these differ."""
    contents = [renamed(info, name) for name, info in checkpoint.tensors.items()]
    orders: list[list[Content]] = []
    for order in (contents, in_library_order(contents), sorted(contents, key=lambda content: content.plan.name)):
        if order not in orders:
            orders.append(order)
    return orders


def readings(subject: Subject) -> int:
    """Return the largest number of times that all tensors are read for the stated hashes."""
    is_read = subject.compares_hashes and subject.metadata.keys() & {MODEL_HASH, SPEC_HASH}
    return len(_orders(subject.checkpoint)) if is_read else 0


def recompute(subject: Subject, draft: Draft, progress: Progress = silent) -> Iterator[str]:
    """Recompute the hashes that the file states from the draft, which must be final."""
    contents = list(draft.contents.values())
    true: dict[str, str] = {}
    if MODEL_HASH in draft.metadata or LEGACY_HASH in draft.metadata:
        true |= sshs_hashes(contents, draft.metadata, progress)
    if SPEC_HASH in draft.metadata:
        ordered = in_file_order(content.plan for content in contents)
        true[SPEC_HASH] = "0x" + data_sha256((draft.contents[plan.name] for plan in ordered), progress)
    for key, value in true.items():
        if key in draft.metadata and draft.metadata[key] != value:
            draft.metadata[key] = value
            yield f"recomputed {key} ({value})"
