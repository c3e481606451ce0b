"""The one run that may change a file where it stands, and how it writes a header so that no kill leaves it in parts."""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lora_inspect.errors import LoraInspectError, changed
from lora_inspect.files.input_file import Identity
from lora_inspect.files.outputs import refusing
from lora_inspect.files.safetensors.byte_copy import write_all
from lora_inspect.files.safetensors.header import LENGTH_BYTES
from lora_inspect.files.safetensors.header_recovery import (
    DIGEST_BYTES,
    JOURNAL_ENDING,
    TORN,
    Journal,
    decoded,
    is_ours,
    journal_of,
    size_of,
)
from lora_inspect.files.system import close_locked, create, is_at, lock, open_itself, sync_folder

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
        """Puts `header` in the place of one of the same length.

        Raises LoraInspectError where the disk refuses, with the old header in its place, and where the file is not the
        one of `identity` any more.
        """
        with refusing(self.file):
            descriptor = open_itself(self.file)
            try:
                if Identity.of(os.fstat(descriptor)) != identity:
                    raise changed(self.file)
                journal = Journal(_read(descriptor, len(header)), header)
                self._keep(journal)
                try:
                    _write(descriptor, header)
                except BaseException:  # an interrupt as well: the file gets its old header back
                    _write(descriptor, journal.old)
                    self.is_needed = False
                    raise
                self.is_needed = False
            finally:
                os.close(descriptor)

    def repair(self) -> None:
        """Puts back what a run that died was replacing, if it had begun to."""
        size = os.fstat(self._journal).st_size
        if not is_ours(_read(self._journal, min(size, size_of(0)))[: size_of(0) - DIGEST_BYTES]):
            path = journal_of(self.file)
            raise LoraInspectError(f"{path}: it is in the way, and no journal of lora-inspect; give it another name.")
        descriptor = open_itself(self.file)
        try:
            length = LENGTH_BYTES + int.from_bytes(_read(descriptor, LENGTH_BYTES), "little")
            found = decoded(_read(self._journal, size)) if size == size_of(length) else None
            if found and found.state(_read(descriptor, length)) == TORN:
                _write(descriptor, found.old)
        finally:
            os.close(descriptor)

    def _keep(self, journal: Journal) -> None:
        """Has the disk keep both headers before one of them is touched."""
        os.ftruncate(self._journal, 0)
        os.lseek(self._journal, 0, os.SEEK_SET)
        write_all(self._journal, journal.encoded())
        os.fsync(self._journal)
        sync_folder(os.path.dirname(self.file) or os.curdir)
        self.is_needed = True


@contextmanager
def editing(file: str) -> Iterator[Editing]:
    """The right to change `file`, after what a run that died has left of it is put right.

    Raises LoraInspectError where another run has it, and where nothing can be written beside the file.
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


def put_right(path: str) -> None:
    """Repairs the file, or those of the folder, whose journals say that a run died while it rewrote them."""
    folder = os.path.isdir(path)
    found = [os.path.join(path, name) for name in sorted(os.listdir(path))] if folder else [journal_of(path)]
    for journal in found:
        if journal.endswith(JOURNAL_ENDING) and os.path.lexists(journal):
            with editing(journal.removesuffix(JOURNAL_ENDING)):
                pass


def _claim(file: str) -> tuple[int, bool]:
    """The descriptor of a locked journal, and whether a run that died had left it."""
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
    raise LoraInspectError(f"{file}: another run is changing it; run the command again when that is done.")


def _is_free(descriptor: int, is_left: bool) -> bool:
    """Whether the lock of a journal is taken now, or where there are no locks, nobody can be at it any more."""
    is_locked = lock(descriptor)
    if is_locked is None:
        return not is_left or time.time() - os.fstat(descriptor).st_mtime > _LONGEST_RUN
    return is_locked


def _release(path: str, descriptor: int, keeps: bool) -> None:
    """Gives the right back, however often it is interrupted; a journal that the next run needs stays."""
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
    """The first bytes of a file, as many as it has of them."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    found = b""
    while len(found) < count and (piece := os.read(descriptor, count - len(found))):
        found += piece
    return found


def _write(descriptor: int, header: bytes) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    write_all(descriptor, header)
    os.fsync(descriptor)
