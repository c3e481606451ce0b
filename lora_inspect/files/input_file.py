"""One input file: opened without waiting, and the same file from its header to its last byte. Standard library only."""

import os
import stat
from collections.abc import Mapping
from types import TracebackType

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.system import open_without_waiting
from lora_inspect.records import NamedTuple


class Identity(NamedTuple):
    """What a file cannot keep when it is replaced, rewritten, cut, extended or touched.

    `bytes` is its size, `modified` the time of its last change in nanoseconds.
    """

    device: int
    inode: int
    bytes: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        """The identity of the file that the system described."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class InputFile:
    """An open file, as a context manager. With the `identity` of an earlier opening it has to be that file still.

    Raises LoraInspectError where it is not, where it cannot be read, and where it is no file on a disk.
    """

    def __init__(self, path: str, identity: Identity | None = None) -> None:
        self.path = path
        try:
            self._handle = open(path, "rb", buffering=0, opener=open_without_waiting)  # noqa: SIM115
        except FileNotFoundError:
            raise (changed(path) if identity else _unreadable(path, "No such file or directory")) from None
        except OSError as error:
            raise _unreadable(path, error.strerror) from None
        status = os.fstat(self._handle.fileno())
        self.identity = Identity.of(status)
        if identity and identity != self.identity:
            self.close()
            raise changed(path)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise LoraInspectError(f"{path}: it is neither a file nor a folder; name a file on a disk.")

    def __enter__(self) -> "InputFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the descriptor back."""
        self._handle.close()

    def check_unchanged(self) -> None:
        """Raises LoraInspectError where the file was written to since it was opened."""
        if Identity.of(os.fstat(self.fileno())) != self.identity:
            raise changed(self.path)

    def fileno(self) -> int:
        """The descriptor, for what the system does by itself."""
        return self._handle.fileno()

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        """Fills `buffer` with the bytes from position `start` on."""
        view = memoryview(buffer)
        try:
            self._handle.seek(start)
            while view:
                count = self._handle.readinto(view)
                if not count:
                    raise changed(self.path)
                view = view[count:]
        except OSError as error:
            raise _unreadable(self.path, error.strerror) from None

    def read_few(self, start: int, count: int) -> bytes:
        """The `count` bytes from position `start` on, where the system mostly has them in one piece."""
        try:
            self._handle.seek(start)
            data = self._handle.read(count)
        except OSError as error:
            raise _unreadable(self.path, error.strerror) from None
        return data if len(data) == count else bytes(self.read(start, count))

    def read(self, start: int, count: int) -> bytearray:
        """The `count` bytes from position `start` on."""
        buffer = bytearray(count)
        self.read_into(start, buffer)
        return buffer


def read_whole(
    path: str, longest: int, identity: Identity | None = None, way_out: str = "fetch it again"
) -> tuple[bytearray, Identity]:
    """All bytes of a small file, and its identity; LoraInspectError where it has more than `longest` bytes."""
    with InputFile(path, identity) as source:
        size = source.identity.bytes
        if size > longest:
            raise LoraInspectError(
                f"{path}: it has {size:,} bytes, but at most {longest:,} of such a file are read; {way_out}."
            )
        return source.read(0, size), source.identity


def identify(path: str) -> Identity:
    """Which file `path` leads to; raises LoraInspectError where there was one and is none any more."""
    try:
        return Identity.of(os.stat(path))
    except OSError:
        raise changed(path) from None


def check_unchanged(inputs: Mapping[str, Identity]) -> None:
    """Raises LoraInspectError where a path does not lead to the file any more that was read there."""
    for path, identity in inputs.items():
        if identify(path) != identity:
            raise changed(path)


def changed(path: str) -> LoraInspectError:
    """The error for a file that did not stay as it was."""
    return LoraInspectError(f"{path}: it changed while it was read; run the command again.")


def _unreadable(path: str, reason: str | None) -> LoraInspectError:
    return LoraInspectError(f"{path or 'the empty name'}: it cannot be read ({reason}); check the path and its rights.")
