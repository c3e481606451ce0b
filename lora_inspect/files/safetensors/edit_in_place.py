"""A new metadata for a .safetensors file with the same bytes of tensors: in a new file, or in place.

In a new file the data keeps its distance from the blocks of the file system, so that one that can share blocks between
files copies none of it. In place, only one run at a time may change the file, and it writes the header so that no kill
leaves it in parts.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from lora_inspect.errors import (
    CouldNotWorkError,
    DiskRefused,
    LoraInspectError,
    RefusedError,
    WouldOverwriteError,
    changed,
)
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.deferred_signals import committing
from lora_inspect.files.input_file import Identity, InputFile, check_unchanged
from lora_inspect.files.outputs import NO_SPACE, new_file, refusing
from lora_inspect.files.safetensors.header import LENGTH_BYTES, TensorInfo, identified_header
from lora_inspect.files.safetensors.header_recovery import (
    DIGEST_BYTES,
    TORN,
    Journal,
    decoded,
    is_ours,
    journal_of,
    size_of,
)
from lora_inspect.files.safetensors.writer import (
    ALIGNMENT,
    ROOM,
    TensorPlan,
    copy_bytes,
    header_text,
    padded_header,
    write_all,
)
from lora_inspect.files.system import close_locked, create, give_rights, is_at, lock, open_itself, sync_folder
from lora_inspect.progress import Progress, silent

_TRIES = 100
# Where no lock tells whether a run is alive, a journal that is older than this is of one that died.
_LONGEST_RUN = 60.0


class Editing:
    """The right to change a file, which one run has at a time: the open journal with its lock."""

    def __init__(self, file: str, descriptor: int) -> None:
        self.file = file
        self.is_needed = False
        self._journal = descriptor

    def rewrite(self, header: bytes, identity: Identity) -> None:
        """Replace the header by `header`, which has the same length.

        Raises LoraInspectError if the disk refuses, with the old header in its place, and if the file is no longer the
        one of `identity`.
        """
        with refusing(self.file):
            descriptor = open_itself(self.file)
            try:
                if Identity.of(os.fstat(descriptor)) != identity:
                    raise changed(self.file)
                journal = Journal(_read(descriptor, len(header)), header)
                self._keep(journal)
                try:
                    with committing():
                        _write(descriptor, header)
                except BaseException as error:  # an interrupt as well: the file gets its old header back
                    self._put_back(descriptor, journal, error)
                    raise
                self.is_needed = False
            finally:
                os.close(descriptor)

    def _put_back(self, descriptor: int, journal: Journal, error: BaseException) -> None:
        """Write the old header; for a disk error raise LoraInspectError, which names the header in place."""
        try:
            _write(descriptor, journal.old)
        except OSError as again:
            found = _read(descriptor, len(journal.old))
            which = {journal.old: "has its old one", journal.new: "has the new one"}.get(found, "has parts of both")
            raise CouldNotWorkError(
                self.file,
                f"the disk refuses its new header and then the old one ({again.strerror}), and the file {which}",
                "run the command again, which puts parts right",
            ) from None
        self.is_needed = False
        if isinstance(error, OSError):
            room = "free space, or " if error.errno in NO_SPACE else ""
            raise DiskRefused(
                self.file,
                f"lora-inspect cannot write it ({error.strerror}), so it has its old header",
                f"{room}write another file with -o",
                reason=error.strerror,
            ) from None

    def repair(self) -> None:
        """Restore the old header if a run died while it replaced it."""
        size = os.fstat(self._journal).st_size
        if not is_ours(_read(self._journal, min(size, size_of(0)))[: size_of(0) - DIGEST_BYTES]):
            path = journal_of(self.file)
            raise WouldOverwriteError(
                path, "it is in the way and is not a journal of lora-inspect", "give it another name"
            )
        descriptor = open_itself(self.file)
        try:
            length = LENGTH_BYTES + int.from_bytes(_read(descriptor, LENGTH_BYTES), "little")
            found = decoded(_read(self._journal, size)) if size == size_of(length) else None
            if found and found.state(_read(descriptor, length)) == TORN:
                _write(descriptor, found.old)
        finally:
            os.close(descriptor)

    def _keep(self, journal: Journal) -> None:
        """Sync both headers to disk before one of them is touched."""
        os.ftruncate(self._journal, 0)
        os.lseek(self._journal, 0, os.SEEK_SET)
        write_all(self._journal, journal.encoded())
        os.fsync(self._journal)
        sync_folder(os.path.dirname(self.file) or os.curdir)
        self.is_needed = True


@contextmanager
def editing(file: str) -> Iterator[Editing]:
    """Yield the right to change `file`, after repairing the leftovers of a run that died.

    Raises LoraInspectError if another run has the right, or nothing can be written next to the file.
    """
    with refusing(file):
        descriptor, is_left = _claim(file)
    own = Editing(file, descriptor)
    try:
        if is_left:
            own.is_needed = True
            with refusing(file):
                own.repair()
            own.is_needed = False
        yield own
    finally:
        _release(journal_of(file), descriptor, own.is_needed)


def repair(path: str) -> None:
    """Repair the file, or the files in the folder, with journals of runs that died while they rewrote them."""
    if os.path.isdir(path):
        names = set(os.listdir(path))
        files = [os.path.join(path, name) for name in sorted(names) if journal_of(name) in names]
    else:
        files = [path] if os.path.lexists(journal_of(path)) else []
    for file in files:
        with editing(file):
            pass


def _claim(file: str) -> tuple[int, bool]:
    """Return the descriptor of a locked journal, and True if it was left by a run that died."""
    path = journal_of(file)
    for _ in range(_TRIES):
        try:
            # Who may read the file may have to read this.
            descriptor, is_left = create(path, stat.S_IMODE(os.stat(file).st_mode) & 0o666), False
        except FileExistsError:
            try:
                descriptor, is_left = open_itself(path), True
            except FileNotFoundError:
                continue  # its run has just ended
        is_free = False
        try:
            is_free = _is_free(descriptor, is_left) and is_at(descriptor, path)
            is_busy = not is_free and is_at(descriptor, path)
        except BaseException:  # an interrupt as well: the lock is given up
            _release(path, descriptor, keeps=is_left)
            raise
        if is_free:
            return descriptor, is_left
        close_locked(descriptor)
        if is_busy:
            break
    raise CouldNotWorkError(file, "another run is changing it", "run the command again after that")


def _is_free(descriptor: int, is_left: bool) -> bool:
    """Return True if this run now has the journal's lock, or, without locks, no other run can still use it."""
    is_locked = lock(descriptor)
    if is_locked is None:
        return not is_left or time.time() - os.fstat(descriptor).st_mtime > _LONGEST_RUN
    return is_locked


def _release(path: str, descriptor: int, keeps: bool) -> None:
    """Release the right even if interrupted several times; a journal that the next run needs stays."""
    try:
        if not keeps:
            _remove(path, descriptor)
    except (KeyboardInterrupt, SystemExit):
        _release(path, descriptor, keeps)
        raise
    with suppress(OSError):
        close_locked(descriptor)


def _remove(path: str, descriptor: int) -> None:
    with suppress(OSError):
        if not is_at(descriptor, path):
            return
    try:
        os.unlink(path)
    except OSError:  # Windows removes no file that is open
        with suppress(OSError):
            close_locked(descriptor)
        with suppress(OSError):
            os.unlink(path)


def _read(descriptor: int, count: int) -> bytes:
    """Return the first `count` bytes of a file, or all if it has fewer."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    found = b""
    while len(found) < count and (piece := os.read(descriptor, count - len(found))):
        found += piece
    return found


def _write(descriptor: int, header: bytes) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    write_all(descriptor, header)
    os.fsync(descriptor)


# File systems share blocks of this size, or of a part of it.
_BLOCK = 4096


class Headed(NamedTuple):
    """A file and its header: its tensors in file order, its metadata, and the position of its data."""

    file: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    identity: Identity
    data_start: int

    @property
    def room(self) -> int:
        """The number of bytes that the metadata can grow in place; negative if the header is too short."""
        return self.data_start - LENGTH_BYTES - len(header_text(self._plans, self.metadata))

    @property
    def _plans(self) -> Sequence[TensorPlan]:
        return [TensorPlan(info.name, info.dtype, info.shape) for info in self.tensors.values()]

    def written(self, metadata: Mapping[str, str]) -> bytes:
        """Return the text of its header with another metadata."""
        return header_text(self._plans, metadata)


def read_headed(file: str) -> Headed:
    """Return the header of one .safetensors file. Raises LoraInspectError for any other file."""
    tensors, metadata, identity = identified_header(file)
    with InputFile(file, identity) as source:
        length = int.from_bytes(source.read(0, LENGTH_BYTES), "little")
    return Headed(file, tensors, metadata, identity, LENGTH_BYTES + length)


def write_anew(
    headed: Headed,
    metadata: Mapping[str, str],
    output: str,
    force: bool = False,
    progress: Progress = silent,
    prove: Callable[[str], None] | None = None,
) -> None:
    """Write the file with another metadata to `output`, complete or not at all; onto itself with its own rights.

    `progress` gets the number of bytes, and `prove` is called with the path of the whole file before it appears. Raises
    LoraInspectError if the disk refuses, if the file changed since it was read, and if the metadata are longer than the
    reader accepts.
    """
    is_same = output == headed.file

    def prove_all(partial: str) -> None:
        _prove(headed, metadata, partial, output)
        if prove:
            prove(partial)
        if is_same:
            check_unchanged({headed.file: headed.identity})

    is_aligned = headed.data_start % ALIGNMENT == 0
    distance = {"behind": headed.data_start % _BLOCK, "step": _BLOCK} if is_aligned else {}
    header = padded_header(headed.written(metadata), ROOM, **distance)
    inputs = {} if is_same else {headed.file: headed.identity}
    with (
        new_file(output, inputs, force or is_same, prove_all) as descriptor,
        InputFile(headed.file, headed.identity) as source,
    ):
        if is_same:
            give_rights(descriptor, os.fstat(source.fileno()))
        write_all(descriptor, header)
        end = headed.identity.bytes
        block = min(headed.data_start + -headed.data_start % _BLOCK, end)
        copy_bytes(source, headed.data_start, block, descriptor, len(header))
        behind = len(header) + block - headed.data_start
        copy_bytes(source, block, end, descriptor, behind, progress)


def write_in_place(headed: Headed, metadata: Mapping[str, str], own: Editing) -> None:
    """Write another metadata into the existing header; no byte after it is touched.

    Raises LoraInspectError if it does not fit, and if the disk refuses.
    """
    text = headed.written(metadata)
    room = headed.data_start - LENGTH_BYTES
    if len(text) > room:
        raise RefusedError(
            headed.file,
            f"its header has room for {room:,} bytes, but the new one needs {len(text):,}",
            "leave out --in-place to write the whole file with room for more",
        )
    own.rewrite(padded_header(text, room - len(text), step=1), headed.identity)


def _prove(headed: Headed, metadata: Mapping[str, str], partial: str, output: str) -> None:
    """Raise an error if the new file does not read as the old one with the new metadata."""
    try:
        found = read_headed(partial)
    except LoraInspectError as error:
        error.replace(partial, output)
        raise
    moved = found.data_start - headed.data_start
    tensors = {
        name: info._replace(file=partial, start=info.start + moved, stop=info.stop + moved, identity=found.identity)
        for name, info in headed.tensors.items()
    }
    if found.tensors != tensors or found.metadata != metadata:
        raise AssertionError(f"{output}: what was written is not what was to be written")
