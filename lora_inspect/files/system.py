"""Functions that not every system has, each with a substitute elsewhere. Standard library only.

No other file of this project names these parts of `os`, `signal`, `fcntl`, `msvcrt` and the C library. The file also
controls when Python looks for cycles among unused objects.
"""

import _thread
import errno
import gc
import importlib
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lora_inspect.fast_namedtuple import NamedTuple

# Windows reads and writes text without it.
_BINARY: int = getattr(os, "O_BINARY", 0)
# A pipe that nobody writes to would hold the opening up for ever.
_WITHOUT_WAITING: int = getattr(os, "O_NONBLOCK", 0) | _BINARY
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)

# Paths, shells and consoles of Windows are others.
IS_WINDOWS: bool = os.name == "nt"
# Elsewhere the libraries of the system are known to bear no copies of a process.
BEARS_COPIES: bool = sys.platform == "linux"

# What ends a command from outside: a kill, and the end of its terminal on Unix and on Windows.
ENDING_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)

# Windows keeps other programs from reading the bytes that are locked: one that no file has.
_LOCKED_BYTE = 1 << 30


class _Rename(NamedTuple):
    """A function of the C library that renames on a condition, and its arguments."""

    function: str
    current_folder: int
    only_new: int
    exchange: int


# What sync_file_range of Linux is asked for: to begin, and not to wait.
_BEGIN_WRITING = 2
# Held by a thread that moves the position of a descriptor, where writing needs that.
_SEEKING = _thread.allocate_lock()
_RENAMES = {"linux": _Rename("renameat2", -100, 1, 2), "darwin": _Rename("renameatx_np", -2, 4, 2)}
# What a kernel, a file system or a container's filter says of a rename or a hard link that it does not know.
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EMLINK)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)


def open_without_waiting(path: str, flags: int) -> int:
    """Return a descriptor of whatever `path` leads to, without waiting for the other end of a pipe."""
    return os.open(path, flags | _WITHOUT_WAITING)


def create(path: str, mode: int = 0o666) -> int:
    """Return a descriptor of a new file to write to.

    Raises FileExistsError if anything is there, even a broken link.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY, mode)


def open_itself(path: str) -> int:
    """Return a descriptor to read and write the regular file `path` itself. Raises OSError for anything else."""
    while stat.S_ISREG(os.lstat(path).st_mode):
        descriptor = open_without_waiting(path, os.O_RDWR | _NO_LINK)
        if is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # since the look it has gone, or something else has its place
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def is_at(descriptor: int, path: str) -> bool:
    """Return True if `path` itself, not a link, is the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def lock(descriptor: int) -> bool | None:
    """Take the lock of an open file without waiting.

    Returns True if it was free: it is held until `close_locked` or the end of the process. Returns False if another
    opening of the file holds it, even in this process, and None if the file system or the platform cannot tell.
    """
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:
        return _lock_on_windows(descriptor)
    if not hasattr(fcntl, "flock"):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lock_on_windows(descriptor: int) -> bool | None:
    try:
        msvcrt = importlib.import_module("msvcrt")
    except ImportError:
        return None
    try:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    except OSError:
        return None
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return True


def close_locked(descriptor: int) -> None:
    """Close a locked file and free its lock at once, since Windows may delay that."""
    try:
        if msvcrt := sys.modules.get("msvcrt"):
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    except OSError:
        pass  # it was none of Windows' locks
    finally:
        os.close(descriptor)


def write_at(descriptor: int, buffer: memoryview, position: int) -> int:
    """Write bytes at a `position` of a file, wherever other threads write; returns how many, at least one."""
    if hasattr(os, "pwrite"):
        written: int = os.pwrite(descriptor, buffer, position)
        return written
    with _SEEKING:
        os.lseek(descriptor, position, os.SEEK_SET)
        return os.write(descriptor, buffer)


def read_at(descriptor: int, count: int, position: int) -> bytes:
    """Read up to `count` bytes from a `position` of a file, wherever other threads read and write."""
    if hasattr(os, "pread"):
        read: bytes = os.pread(descriptor, count, position)
        return read
    with _SEEKING:
        os.lseek(descriptor, position, os.SEEK_SET)
        return os.read(descriptor, count)


def copy_in_system(source: int, target: int, count: int, position: int, at: int) -> int:
    """Copy up to `count` bytes from `position` of a descriptor to `at` in another one, without reading them.

    Returns the number of bytes; 0 if the system or one of the file systems cannot do it, or `source` ends.
    """
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        moved: int = os.copy_file_range(source, target, count, position, at)
    except OSError:
        return 0
    return moved


def wake_thread(thread: int, number: int) -> None:
    """Send a signal to the main thread, of this identifier, so that it also ends a wait of the system.

    Elsewhere Python runs the handler as soon as the thread runs Python's code.
    """
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(thread, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def usable_cores() -> int:
    """Return the number of cores for this process, as the system and its control group state."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/proc/self/cgroup", "rb") as handle:
            group = handle.read().decode(errors="replace").partition("0::")[2].partition("\n")[0]
        with open(f"/sys/fs/cgroup{group}/cpu.max", "rb") as handle:
            quota, period = handle.read().split()[:2]
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return cores


def give_rights(descriptor: int, status: os.stat_result) -> None:
    """Give an open file the mode of another one, and its owner and group if the system allows that."""
    give_owner, give_mode = getattr(os, "fchown", None), getattr(os, "fchmod", None)
    own = os.fstat(descriptor)
    if give_owner and (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        with suppress(OSError):
            give_owner(descriptor, status.st_uid, status.st_gid)
    if give_mode:
        give_mode(descriptor, stat.S_IMODE(status.st_mode))


def rename_new(source: str, target: str) -> None:
    """Rename a file or a folder if nothing has the new name. Raises FileExistsError if something has.

    Only without hard links and without such a rename can something appear under the new name between the check and the
    renaming.
    """
    if not os.path.isdir(source) and _link_new(source, target):
        with suppress(OSError):  # it has its name, and under the other one whoever made that finds it
            os.unlink(source)
        return
    call = _RENAMES.get(sys.platform)
    if call and _rename_with(call, call.only_new, source, target):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(source, target)


def exchange(first: str, second: str) -> bool:
    """Exchange the names of two folders in one step; return False, with nothing done, if the system cannot."""
    call = _RENAMES.get(sys.platform)
    return call is not None and _rename_with(call, call.exchange, first, second)


def start_writing(descriptor: int) -> bool:
    """Start writing a file's data to disk, mostly without waiting; return False if the system cannot do that."""
    if sys.platform != "linux":
        return False
    try:
        import ctypes

        library = ctypes.CDLL(None)
        whole = ctypes.c_int64(0)
        return bool(library.sync_file_range(descriptor, whole, whole, _BEGIN_WRITING) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def sync_file(path: str) -> None:
    """Sync a file to disk. Raises OSError if that fails."""
    descriptor = os.open(path, os.O_RDWR | _NO_LINK | _BINARY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: str) -> None:
    """Sync the names in a folder to disk; do nothing if folders cannot be opened or synced."""
    try:
        descriptor = open_without_waiting(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _link_new(source: str, target: str) -> bool:
    """Give a file a second name; return False if there are no links. Raises FileExistsError if it is taken."""
    if not hasattr(os, "link"):
        return False
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return False
    return True


def _rename_with(call: _Rename, flag: int, source: str, target: str) -> bool:
    """Rename with a flag; return False if the system does not know it, or Python cannot call its C library."""
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
    except (ImportError, OSError):
        return False
    rename = getattr(library, call.function, None)
    if rename is None:
        return False
    here = call.current_folder
    if rename(here, os.fsencode(source), here, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), source, None, target)


@contextmanager
def without_collecting() -> Iterator[None]:
    """Pause garbage collection while the block makes many lasting objects, to save time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
