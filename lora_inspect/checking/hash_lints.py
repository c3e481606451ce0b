"""Hashes in the metadata that are not those of the file's tensors."""

import hashlib
import re
from collections.abc import Iterator

from lora_inspect.checking.draft import Draft
from lora_inspect.checking.subject import Subject
from lora_inspect.files.contents import Content, renamed
from lora_inspect.files.hashes import (
    LEGACY_HASH,
    MODEL_HASH,
    SPEC_HASH,
    data_sha256,
    in_library_order,
    legacy_hash,
    sshs_hashes,
)
from lora_inspect.files.writer import in_file_order
from lora_inspect.printable import shortened
from lora_inspect.reading.problem import Finding

STALE, EMPTY = "hash-stale", "hash-empty"

_OF_NOTHING = hashlib.sha256(b"").hexdigest()
_LYCORIS = "0x"


def stated_hashes(subject: Subject) -> Iterator[Finding]:
    """Hashes of other tensors, of none, and what is no hash at all."""
    if not _has_one_header(subject):
        return
    tensors = subject.checkpoint.tensors
    contents = [renamed(info, name) for name, info in tensors.items()]
    has_bytes = any(info.nbytes for info in tensors.values())
    model_is_true = False
    for key, digits in ((MODEL_HASH, 64), (SPEC_HASH, 64), (LEGACY_HASH, 8)):
        if key not in subject.metadata:
            continue
        stated = subject.metadata[key].strip().lower()
        plain = stated.removeprefix("0x")
        if not plain or (plain == _OF_NOTHING and has_bytes):
            yield Finding(EMPTY, f"{key} is {'empty' if not plain else 'the hash of no bytes at all'}", (key,))
        elif not re.fullmatch(f"[0-9a-f]{{{digits}}}", plain):
            yield Finding(STALE, f"{key} is '{shortened(stated)}', which is no hash", (key,))
        elif key == LEGACY_HASH:
            # It hangs on the length of the header too, so where the tensors are proved it says nothing of them.
            infos = tensors.values()
            if not model_is_true and plain not in (
                legacy_hash(infos, subject.metadata),
                legacy_hash(infos, subject.metadata, padded=False),
            ):
                yield _stale(key, stated)
        elif _is_of_data(plain, contents):
            model_is_true = model_is_true or key == MODEL_HASH
        elif key != MODEL_HASH or not stated.startswith(
            _LYCORIS
        ):  # LyCORIS hashes in an order that the file does not show
            yield _stale(key, stated)


def _stale(key: str, stated: str) -> Finding:
    return Finding(STALE, f"{key} is {stated}, which is not the hash of the tensors that the file has", (key,))


def _has_one_header(subject: Subject) -> bool:
    return len(subject.checkpoint.files) == 1 == len(subject.headers)


def _is_of_data(digits: str, contents: list[Content]) -> bool:
    """Whether these are the digits of the data in the order of the file, of the library or of the names."""
    by_name = sorted(contents, key=lambda content: content.plan.name)
    orders: list[list[Content]] = []
    for order in (contents, in_library_order(contents), by_name):
        if order not in orders:
            orders.append(order)
            if data_sha256(order) == digits:
                return True
    return False


def recompute(subject: Subject, draft: Draft) -> Iterator[str]:
    """Those that the file states, as they are of the draft, which nothing changes any more."""
    contents = list(draft.contents.values())
    true: dict[str, str] = {}
    if MODEL_HASH in draft.metadata or LEGACY_HASH in draft.metadata:
        true |= sshs_hashes(contents, draft.metadata)
    if SPEC_HASH in draft.metadata:
        ordered = in_file_order(content.plan for content in contents)
        true[SPEC_HASH] = "0x" + data_sha256(draft.contents[plan.name] for plan in ordered)
    for key, value in true.items():
        if key in draft.metadata and draft.metadata[key] != value:
            draft.metadata[key] = value
            yield f"took {key} anew ({value})"
