"""One input file, opened without waiting and unchanged from its header to its last byte. Standard library only."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from lora_inspect.errors import CouldNotWorkError, LoraInspectError, NotFoundError, RefusedError, changed
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.system import open_without_waiting, read_at
from lora_inspect.stores.address import is_remote

if TYPE_CHECKING:
    from lora_inspect.stores.client import Answer


# Ranges with no more bytes between them are read together, so many bytes at most.
_GAP, _AT_ONCE = 1 << 10, 1 << 16


class Identity(NamedTuple):
    """The properties of a file that change when it is replaced, rewritten, truncated, extended or touched.

    `bytes` is its size, `modified` the time of its last change in nanoseconds. A remote file has no device, but the
    `tag` that its store gave it.
    """

    device: int
    inode: int
    bytes: int
    modified: int
    tag: str

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        """Return the identity of the file that the system described."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, "")


class InputFile:
    """An open file, as a context manager. With the `identity` of an earlier opening it must be the same file.

    An address gives a `RemoteInput`, which reads by ranges. Raises LoraInspectError if it is another file, if it cannot
    be read, and if it is not a file.
    """

    # Whether the system has it, and may move its bytes by itself.
    is_on_disk = True

    def __new__(cls, path: str, identity: Identity | None = None) -> "InputFile":
        """Return an input of the kind that a path needs."""
        return super().__new__(RemoteInput if is_remote(path) else cls)

    def __init__(self, path: str, identity: Identity | None = None) -> None:
        self.path = path
        try:
            self._handle = open(path, "rb", buffering=0, opener=open_without_waiting)  # noqa: SIM115
        except FileNotFoundError:
            raise (
                changed(path) if identity else _unreadable(path, "No such file or directory", NotFoundError)
            ) from None
        except OSError as error:
            raise _unreadable(path, error.strerror) from None
        status = os.fstat(self._handle.fileno())
        self.identity = Identity.of(status)
        if identity and identity != self.identity:
            self.close()
            raise changed(path)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise RefusedError(path, "it is neither a file nor a folder", "name a file on a disk")

    def __enter__(self) -> "InputFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        self._handle.close()

    def check_unchanged(self) -> None:
        """Raise LoraInspectError if the file was written to since it was opened."""
        if Identity.of(os.fstat(self.fileno())) != self.identity:
            raise changed(self.path)

    def fileno(self) -> int:
        """Return the descriptor, for direct system calls."""
        return self._handle.fileno()

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` with the bytes from position `start` on."""
        view = memoryview(buffer)
        try:
            self._handle.seek(start)
            while view:
                count = self._handle.readinto(view)
                if not count:
                    break
                view = view[count:]
        except OSError as error:
            raise _unreadable(self.path, error.strerror) from None
        if view:
            raise changed(self.path)

    def read_few(self, start: int, count: int) -> bytes:
        """Return the `count` bytes from position `start` on, which the system mostly has in one piece."""
        try:
            data = read_at(self.fileno(), count, start)
        except OSError as error:
            raise _unreadable(self.path, error.strerror) from None
        return data if len(data) == count else bytes(self.read(start, count))

    def expect(self, start: int, stop: int) -> None:
        """Announce that a range will be read block after block; the system reads ahead by itself."""

    def read_each(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of many small ranges (position, count), in order; close neighbours are read together."""
        found: list[bytes] = []
        for together in _neighbours(ranges):
            (first, _), (last, count) = together[0], together[-1]
            data = self.read_few(first, last + count - first)
            found += [data[start - first : start - first + size] for start, size in together]
        return found

    def read(self, start: int, count: int) -> bytearray:
        """Return the `count` bytes from position `start` on."""
        buffer = bytearray(count)
        self.read_into(start, buffer)
        return buffer

    def pieces(self, start: int, stop: int, size: int) -> Iterator[bytearray]:
        """Return all bytes of a range, about `size` of them at a time."""
        return (self.read(first, min(size, stop - first)) for first in range(start, stop, size))


def _neighbours(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield groups of ranges that follow each other in the file so closely that they are read at once."""
    together: list[tuple[int, int]] = []
    for start, size in ranges:
        if together:
            (first, _), (last, count) = together[0], together[-1]
            if not (last + count <= start <= last + count + _GAP and start + size - first <= _AT_ONCE):
                yield together
                together = []
        together.append((start, size))
    if together:
        yield together


class RemoteInput(InputFile):
    """The file at an address, which `path` is the printable form of. Every answer of its store has to be of it."""

    is_on_disk = False

    def __init__(self, path: str, identity: Identity | None = None) -> None:
        from lora_inspect.stores.remote_file import RemoteFile

        self._file = RemoteFile(path, identity and answer_of(identity))
        self.path = self._file.address
        self.identity = identity_of(self._file.answer)

    def close(self) -> None:
        """Do nothing: nothing stays open between two ranges."""

    def check_unchanged(self) -> None:
        """Do nothing: every answer of the store is checked as it arrives."""

    def fileno(self) -> int:
        """Raise AssertionError: there is no descriptor."""
        raise AssertionError(f"{self.path} is on no disk")

    def expect(self, start: int, stop: int) -> None:
        """Fetch the bytes of a range in large pieces, ahead of their use."""
        self._file.expect(start, stop)

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` with the bytes from position `start` on."""
        self._file.read_into(start, buffer)

    def read_few(self, start: int, count: int) -> bytes:
        """Return the `count` bytes from position `start` on."""
        return bytes(self.read(start, count))

    def read_each(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of many small ranges; neighbours come together and others in parallel."""
        return self._file.read_each(ranges)

    def pieces(self, start: int, stop: int, size: int) -> Iterator[bytearray]:
        """Return all bytes of a range in pieces; while one is used, the next ones are on their way."""
        return self._file.stream(start, stop)


def identity_of(answer: "Answer") -> Identity:
    """Return the identity of the file that a store described."""
    return Identity(0, 0, answer.bytes, answer.modified, answer.tag)


def answer_of(identity: Identity) -> "Answer":
    """Return the answer that a store has to give for a remote file of this identity."""
    from lora_inspect.stores.client import Answer

    return Answer(identity.bytes, identity.modified, identity.tag)


class HeldInput:
    """One file at a time, which stays open until another one is asked for."""

    def __init__(self) -> None:
        self._held: InputFile | None = None

    def of(self, path: str, identity: Identity | None) -> InputFile:
        """Return the file at `path`: the open one if it is the same, or a new InputFile."""
        if self._held is None or (self._held.path, self._held.identity) != (path, identity):
            self.close()
            self._held = InputFile(path, identity)
        return self._held

    def close(self) -> None:
        """Close the file."""
        held, self._held = self._held, None
        if held is not None:
            held.close()


def read_whole(
    path: str, longest: int, identity: Identity | None = None, way_out: str = "fetch it again"
) -> tuple[bytearray, Identity]:
    """Return all bytes of a small file, and its identity. Raises LoraInspectError above `longest` bytes."""
    with InputFile(path, identity) as source:
        size = source.identity.bytes
        if size > longest:
            raise RefusedError(
                path, f"it has {size:,} bytes, but lora-inspect reads at most {longest:,} of such a file", way_out
            )
        return source.read(0, size), source.identity


def identify(path: str) -> Identity:
    """Return the identity of the file at `path`. Raises LoraInspectError if it is gone."""
    if is_remote(path):
        from lora_inspect.stores.stat import look

        found = look(path)
        if found is None or found.answer is None:
            raise changed(path)
        return identity_of(found.answer)
    try:
        return Identity.of(os.stat(path))
    except OSError:
        raise changed(path) from None


def check_unchanged(inputs: Mapping[str, Identity]) -> None:
    """Raise LoraInspectError if a path no longer leads to the file that was read there."""
    for path, identity in inputs.items():
        if identify(path) != identity:
            raise changed(path)


def _unreadable(path: str, reason: str | None, kind: type[LoraInspectError] = CouldNotWorkError) -> LoraInspectError:
    return kind(path or "the empty name", f"it cannot be read ({reason})", "check the path and its rights")
