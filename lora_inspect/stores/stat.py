"""The type of an object at an address, and the entries of a folder.

Within one look, answers are remembered.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.stores.address import HF, S3, printable_address, scheme_of, split
from lora_inspect.stores.client import Located, Sink
from lora_inspect.stores.requests import fill, tried, wait_for
from lora_inspect.stores.store_failures import Denied, Missing, is_a_folder, missing, no_folder_of_a_server

# So many bytes at the start of a file are asked for at once: most headers are not much longer.
START = 64 << 10


class _Known(NamedTuple):
    """Results of one look: versions by address, and listings of folders."""

    found: dict[str, Located | None]
    folders: dict[str, list[Located]]
    starts: dict[Located, bytes]


_known: ContextVar[_Known | None] = ContextVar("_known", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """A block in which a store is asked once for each thing. One in another is part of that.

    Behind it all is asked anew, as it may have changed.
    """
    if _known.get() is not None:
        yield
        return
    token = _known.set(_Known({}, {}, {}))
    try:
        yield
    finally:
        _known.reset(token)


def look(address: str) -> Located | None:
    """Return the file or folder at an address, or None. Raises LoraInspectError where the store does not say."""
    known, address = _known.get(), printable_address(address)
    if known is None:
        return _look(address, 1)[0]
    if address not in known.found:
        found, start = _look(address, START)
        known.found[address] = found
        if found:
            known.found[found.address] = found
            known.starts[found] = start
    return known.found[address]


def look_at_file(address: str) -> Located:
    """The file at an address; LoraInspectError where there is none."""
    found = look(address)
    if found is None:
        raise missing(printable_address(address))
    if found.is_folder:
        raise is_a_folder(found.address)
    return found


def exists(address: str) -> bool:
    """Return True if the store shows anything at an address.

    Servers and stores report a missing file like a secret one to users who may not list its folder. They report nothing
    about a missing bucket.
    """
    try:
        return look(address) is not None
    except (Denied, Missing):
        return False


def is_folder(address: str) -> bool:
    """Return True for a folder; servers have none. Raises LoraInspectError where the store does not say."""
    if scheme_of(address) not in (S3, HF):
        return False
    found = look(address)
    return found is not None and found.is_folder


def in_folder(address: str) -> list[Located]:
    """List a folder. Raises LoraInspectError for a server, which lists none."""
    known = _known.get()
    if known is None:
        return _below(address, deep=False)
    if address not in known.folders:
        listed = _below(address, deep=False)
        known.folders[address] = listed
        known.found.update({one.address: one for one in listed})
    return known.folders[address]


def below(address: str) -> list[Located]:
    """All files below a folder, in its subfolders too."""
    return _below(address, deep=True)


def start_of(found: Located) -> bytes:
    """The first bytes of a file, START at most."""
    known = _known.get()
    start = known.starts.get(found, b"") if known else b""
    wanted = min(START, found.answer.bytes if found.answer else 0)
    if len(start) < wanted:
        sink = Sink(found.address, 0, bytearray(wanted), found.answer)
        fill([sink])
        start = sink.taken
        if known:
            known.starts[found] = start
    return start


def begin(addresses: Sequence[str]) -> None:
    """Request the versions and first bytes of many files at once, before they are asked for."""
    known = _known.get()
    if known is None:
        return
    for folder in dict.fromkeys(split(address)[0] for address in addresses):
        if scheme_of(folder) in (S3, HF):
            in_folder(folder)
    sinks = [sink for address in addresses if (sink := _sink(address, known))]
    fill(sinks)
    for sink in sinks:
        found = Located(sink.address, sink.answer)
        known.found[sink.address] = found
        known.starts[found] = sink.taken


def _sink(address: str, known: _Known) -> Sink | None:
    """Return a sink for the first bytes of a file; None if they are known or there is no file."""
    found = known.found.get(address)
    if found is None:
        return None if scheme_of(address) in (S3, HF) else Sink(address, 0, bytearray(START))
    if found.answer is None or found in known.starts:
        return None
    return Sink(address, 0, bytearray(min(START, found.answer.bytes)), found.answer)


def _look(address: str, room: int) -> tuple[Located | None, bytes]:
    """Return the file or folder at an address, and the first bytes of a server's file."""
    if scheme_of(address) in (S3, HF):
        return wait_for(address, tried(address, lambda: _store_of(address).look(address))), b""
    if address.endswith("/") or not split(address)[1]:
        raise no_folder_of_a_server(address)
    sink = Sink(address, 0, bytearray(room))
    try:
        fill([sink])
    except Missing:
        return None, b""
    return Located(address, sink.answer), sink.taken


def _below(address: str, deep: bool) -> list[Located]:
    if scheme_of(address) not in (S3, HF):
        raise no_folder_of_a_server(address)
    return wait_for(address, tried(address, lambda: _store_of(address).below(address, deep)))


def _store_of(address: str) -> Any:
    if scheme_of(address) == S3:
        from lora_inspect.stores import s3

        return s3
    from lora_inspect.stores import hub

    return hub
