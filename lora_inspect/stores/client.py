"""The clients of stores: fsspec's file systems with the stores' own settings, and records that all stores share.

Credentials come only from there: AWS_* and ~/.aws for s3, HF_TOKEN and `hf auth login` for hf, and fsspec's own
configuration. `Located` and `Answer` hold facts that a store reports, `Sink` the memory for its bytes. `telling`
informs the command line while the main thread waits for a store.

An object goes into a store in parts, and the store may copy some of them from another object. Some stores want all
parts but the last to be of one size, so that a grid of it lies over each object.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lora_inspect.errors import NeedsLibraryError, changed
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.stores.address import HF, HTTP, HTTPS, S3, printable_address, scheme_of
from lora_inspect.stores.patience import heard, timeout
from lora_inspect.version import requirement_with

_NEEDS = {
    HTTPS: ("fsspec", "aiohttp"),
    HTTP: ("fsspec", "aiohttp"),
    S3: ("fsspec", "s3fs"),
    HF: ("fsspec", "aiohttp", "huggingface_hub"),
}
_EXTRA = "remote"
# By scheme, process and timeout: a copy of a process has no thread that answers.
_opened: dict[tuple[str, int, float], Any] = {}
# s3fs tries a request again if nothing comes for this many seconds, or for this part of the timeout if that is longer.
_S3_SILENCE, _S3_PART = 15.0, 0.25


def file_system(address: str) -> Any:
    """The file system of an address's scheme, opened once; it remembers no listings.

    Raises LoraInspectError where a library that it needs is missing, with the command that brings it.
    """
    key = scheme_of(address), os.getpid(), timeout()
    if key not in _opened:
        _opened[key] = _open(address)
    return _opened[key]


def forget_file_systems() -> None:
    """Opens each anew when it is asked for, as where the settings of a store have changed."""
    _opened.clear()


def _open(address: str) -> Any:
    scheme = scheme_of(address)
    try:
        for library in _NEEDS[scheme]:
            __import__(library)
    except ImportError as missing:
        raise NeedsLibraryError(
            printable_address(address),
            f"lora-inspect reads {scheme}:// with {' and '.join(_NEEDS[scheme])}, but cannot load one of them "
            f"({missing})",
            f"run `pip install '{requirement_with(_EXTRA)}'`",
        ) from None
    import fsspec

    options = {}
    if scheme in (HTTPS, HTTP):
        options = {"client_kwargs": _client_settings(fsspec.config.conf)}
    elif scheme == S3:
        silence = {"read_timeout": max(_S3_SILENCE, _S3_PART * timeout())}
        options = {"config_kwargs": silence | fsspec.config.conf.get(S3, {}).get("config_kwargs", {})}
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)


def _client_settings(configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the HTTP client: the machine's proxies and logins, then those of fsspec."""
    told = {"trust_env": True}
    for scheme in (HTTP, HTTPS):
        told |= configured.get(scheme, {}).get("client_kwargs", {})
    return told


class Answer(NamedTuple):
    """The version of a file, by the facts that change when it is replaced or rewritten.

    `modified` is the time of its last change in nanoseconds, 0 where the store does not report it. `tag` is its hash,
    or its ETag in the form of `bare_tag`.
    """

    bytes: int
    modified: int
    tag: str


def bare_tag(told: str) -> str:
    """An ETag without its quotes and without the mark of a weak one: the same store spells it in several ways."""
    return told.strip().removeprefix("W/").strip('"')


class Located(NamedTuple):
    """A file or a folder at an `address`; a folder has no `answer`."""

    address: str
    answer: Answer | None = None

    @property
    def is_folder(self) -> bool:
        """Return True for a folder."""
        return self.answer is None


class Sink:
    """Memory that is filled with the bytes of a file from the position `start` on, as they come.

    `answer` says which file they have to be of, as soon as that is known.
    """

    def __init__(self, address: str, start: int, memory: bytearray | memoryview, answer: Answer | None = None) -> None:
        self.address = address
        self.answer = answer
        self.start = self.position = start
        self._view = memoryview(memory).cast("B")

    @property
    def stop(self) -> int:
        """The position behind the last byte that is wanted."""
        return self.start + len(self._view)

    @property
    def left(self) -> int:
        """Return the number of bytes that have not arrived."""
        return self.stop - self.position

    @property
    def taken(self) -> bytes:
        """The bytes that have come."""
        return bytes(self._view[: self.position - self.start])

    def begin(self, answer: Answer) -> None:
        """Record the version of the file that the next bytes belong to.

        Raises LoraInspectError where earlier bytes belong to another version. The range is cut at the end of the
        file.
        """
        if self.answer is not None and answer != self.answer:
            raise changed(self.address)
        self.answer = answer
        self._view = self._view[: max(answer.bytes - self.start, 0)]

    def put(self, data: bytes) -> None:
        """Append the next bytes, at most as many as are wanted."""
        data = data[: self.left]
        first = self.position - self.start
        self._view[first : first + len(data)] = data
        self.position += len(data)
        heard(len(data))


# Called with True while there is something to wait for, again and again, and with False once it is there.
Told = Callable[[bool], None]
_told: Told | None = None


@contextmanager
def telling(told: Told) -> Iterator[None]:
    """A block in which `told` is told."""
    global _told
    before, _told = _told, told
    try:
        yield
    finally:
        _told = before


def waits(still: bool) -> None:
    """Tells of a wait of this thread, where it is the main one: others wait beside bars of their own."""
    if _told is not None and threading.current_thread() is threading.main_thread():
        _told(still)


PART_BYTES = 8 << 20
_MOST_PARTS = 10_000


class Borrowed(NamedTuple):
    """Bytes `start` to `stop` of another object of the same store, at position `at` of the new one.

    `answer` is the version that the object must still have.
    """

    address: str
    answer: Answer
    start: int
    stop: int
    at: int


def part_size(size: int) -> int:
    """The size of the parts of an object: of all but the last."""
    return PART_BYTES * -(-size // (PART_BYTES * _MOST_PARTS)) or PART_BYTES
