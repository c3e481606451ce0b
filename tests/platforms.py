"""The systems that a process on Linux can play: what each lacks, and what it has in the place of that."""

import ctypes
import errno
import fcntl
import os
import re
import shutil
import signal
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple


def words(text):
    return set(text.split())


# What only some systems have, from the availability notes of the standard library's documentation.
MODULES = words(
    "_winapi ctypes curses fcntl grp msvcrt nt posix pty pwd readline resource select selectors syslog termios tty "
    "winreg"
)
ATTRIBUTES = {
    "os": words(
        "chflags chown chroot ctermid copy_file_range eventfd fchdir fchmod fchown fdatasync fork forkpty fpathconf "
        "fstatvfs get_blocking getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getrandom "
        "getresuid getsid getuid getxattr lchflags lchmod lchown link listxattr lockf major makedev memfd_create minor "
        "mkfifo mknod mount name nice openpty pathconf pidfd_open pipe2 posix_fadvise posix_fallocate posix_spawn "
        "pread preadv pwrite pwritev readv removexattr sched_getaffinity sched_setaffinity sched_yield sendfile "
        "set_blocking setpriority setsid setuid setxattr splice startfile statvfs sync ttyname uname unshare wait "
        "wait3 wait4 waitid writev"
    ),
    "signal": words("alarm pause pidfd_send_signal pthread_kill pthread_sigmask setitimer siginterrupt sigwait"),
    "sys": words("platform getwindowsversion"),
    "shutil": words("chown"),
    "socket": words("AF_UNIX"),
}
# Constants of which every system has only some.
CONSTANTS = {"os": r"(O|P|EX|SCHED)_[A-Z]+|W[A-Z]+", "signal": r"SIG_?[A-Z0-9]+|ITIMER_[A-Z]+"}
EVERYWHERE = words("O_RDONLY O_WRONLY O_RDWR O_CREAT O_EXCL O_TRUNC O_APPEND SIGINT SIGTERM SIG_DFL SIG_IGN")


class Platform(NamedTuple):
    """How a process becomes one, whether two folders exchange names there, and whether locks tell who is alive."""

    play: Callable[[], None]
    exchanges: bool
    locks: bool


def play_linux():
    pass


def play_linux_without_exchange():
    ctypes.CDLL = c_library_with()


def play_linux_without_ctypes():
    sys.modules["ctypes"] = None


def play_file_system_without_links():
    def link(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    os.link = link


def play_what_every_system_has():
    kept = {"os": {"name"}, "sys": {"platform"}}
    for module, names in ATTRIBUTES.items():
        for name in names - kept.get(module, set()):
            take_away(module, name)
    for module in CONSTANTS:
        for name in [name for name in dir(sys.modules[module]) if is_constant(module, name)]:
            take_away(module, name)
    for module in MODULES & {"ctypes", "fcntl", "msvcrt", "pwd", "resource", "termios"}:
        sys.modules[module] = None
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False
    sys.platform = "another"


def play_macos():
    real = ctypes.CDLL(None, use_errno=True).renameat2
    ours = {0: 0, 4: 1, 2: 2}  # RENAME_EXCL, RENAME_SWAP

    def renameatx_np(first_folder, first, second_folder, second, flags):
        assert (first_folder, second_folder) == (-2, -2)  # AT_FDCWD
        return real(-100, first, -100, second, ours[flags])

    ctypes.CDLL = c_library_with(renameatx_np=renameatx_np)
    for name in ("copy_file_range", "posix_fadvise", "pidfd_open", "sched_getaffinity", "splice", "getrandom"):
        take_away("os", name)
    sys.platform = "darwin"


def play_windows():
    for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "copy_file_range", "fork", "getuid", "sendfile", "uname"):
        take_away("os", name)
    for name in ("SIGHUP", "SIGKILL", "SIGUSR2", "SIGALRM", "SIGPIPE"):
        take_away("signal", name)
    signal.SIGBREAK = signal.SIGUSR1
    sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, LK_UNLCK=0, locking=lock_as_on_windows)
    sys.modules["fcntl"] = None
    sys.modules["ctypes"] = None
    os.O_BINARY = 0x8000
    os.open, os.fsync = open_as_on_windows(os.open), fsync_as_on_windows(os.fsync)
    for name in ("rename", "replace", "remove", "unlink", "rmdir"):
        setattr(os, name, unless_open(getattr(os, name), name))
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False
    sys.platform = "win32"


PLATFORMS = {
    "linux": Platform(play_linux, exchanges=True, locks=True),
    "linux without renameat2": Platform(play_linux_without_exchange, exchanges=False, locks=True),
    "linux without ctypes": Platform(play_linux_without_ctypes, exchanges=False, locks=True),
    "a file system without links": Platform(play_file_system_without_links, exchanges=True, locks=True),
    "what every system has": Platform(play_what_every_system_has, exchanges=False, locks=False),
    "macos": Platform(play_macos, exchanges=True, locks=True),
    "windows": Platform(play_windows, exchanges=False, locks=True),
}


def is_constant(module, name):
    return name not in EVERYWHERE and re.fullmatch(CONSTANTS.get(module, "(?!)"), name) is not None


def take_away(module, name):
    if hasattr(sys.modules.get(module), name):
        delattr(sys.modules[module], name)


def c_library_with(**functions):
    def library(name, use_errno=False):
        assert name is None
        assert use_errno
        return types.SimpleNamespace(**functions)

    return library


LOCK, UNLOCK, NOT_WAITING, GET_FLAGS, control, lock = (
    fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB, fcntl.F_GETFL, fcntl.fcntl, fcntl.flock)  # fmt: skip


def lock_as_on_windows(descriptor, mode, count):
    assert (os.lseek(descriptor, 0, os.SEEK_CUR), count) == (1 << 30, 1)
    try:
        lock(descriptor, (LOCK if mode == 2 else UNLOCK) | NOT_WAITING)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def open_as_on_windows(real):
    def open_(path, flags, mode=0o777, *, dir_fd=None):
        assert flags & os.O_BINARY, f"{path} is opened as text"
        assert dir_fd is None
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags & ~os.O_BINARY, mode)

    return open_


def fsync_as_on_windows(real):
    def fsync(descriptor):
        if control(descriptor, GET_FLAGS) & 3 == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor)

    return fsync


def unless_open(real, name):
    """`os.rename` and the like, which Windows refuses for files that are open, and for folders with such files."""

    def call(*paths, **options):
        assert not any(value is not None for value in options.values())
        opened = []
        for number in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the listing's own
                opened.append(os.readlink(f"/proc/self/fd/{number}"))
        for path in map(os.path.abspath, paths):
            if any(os.path.join(each, "").startswith(os.path.join(path, "")) for each in opened):
                raise PermissionError(errno.EACCES, f"{name}: the file is open", path)
        if name == "rename" and os.path.lexists(paths[1]):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), paths[1])
        if name == "replace" and os.path.isdir(paths[1]):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), paths[1])
        return real(*paths)

    return call
