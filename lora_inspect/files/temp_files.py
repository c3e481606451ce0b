"""The names beside an output that one run alone uses while it writes, and what runs that died have left there.

    OUT.<random>.partial.lock   locked as long as the run lives; the mark in it says so
    OUT.<random>.partial        the file or the folder that grows; after an exchange the folder that was replaced
    OUT.<random>.partial.old    the folder to be replaced, where the system cannot exchange two in one step
    OUT.<random>.partial.gone   a folder that is being removed

The lock file is made first and removed last, so that whatever has one of the other names has a lock file, too.
"""

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lora_inspect.files.safetensors.header_recovery import JOURNAL_ENDING
from lora_inspect.files.store_outputs import unfinished_notes
from lora_inspect.files.system import close_locked, create, exchange, is_at, lock, open_itself, rename_new
from lora_inspect.stores.address import is_remote

_LOCK, _OLD, _GONE = ".lock", ".old", ".gone"
_NAME = re.compile(r"(?s)(?P<partial>(?P<output>.+)\.[0-9a-f]{16}\.partial)(?:\.(?:lock|old|gone))?")
_RANDOM_BYTES, _TRIES = 8, 100
# File systems take names of 255 bytes; longer ones than this would be too long with what is appended to them.
_LONGEST_NAME, _KEPT_OF_LONGER = 200, 40

_LOCKED = (
    b"A run of lora-inspect writes beside this file and holds its lock. When no such run is alive, this file and what "
    b"has its name without .lock may be removed. A folder with .old instead is what stood in the output's place.\n"
)
_UNLOCKED = b"A run of lora-inspect writes beside this file, in a place without locks. " + _LOCKED.partition(b". ")[2]


def is_leftover(name: str) -> bool:
    """Whether a run may have left a file or a folder of this name behind."""
    return _NAME.fullmatch(name) is not None or name.endswith(JOURNAL_ENDING)


def is_of_dead_run(path: str) -> bool:
    """Whether a run that died has left what has this path, and with it nothing that could still be wanted."""
    folder, name = os.path.split(path)
    match = _NAME.fullmatch(name)
    if not match:
        return False
    partial = os.path.join(folder, match["partial"])
    try:
        descriptor = open_itself(partial + _LOCK)
    except OSError:
        return False
    try:
        return bool(lock(descriptor)) and _is_ours(descriptor) and not os.path.lexists(partial + _OLD)
    finally:
        close_locked(descriptor)


def without_slash(output: str) -> str:
    """The path without slashes at its end."""
    return output.rstrip(os.sep + (os.altsep or ""))


@contextmanager
def claimed(output: str) -> Iterator[str]:
    """A path beside `output` for a file or a folder that takes its place; what is still there at the end is removed.

    OSError where nothing can be written beside `output`.
    """
    output = without_slash(output)
    partial, descriptor = _claim(output)
    try:
        yield partial
    finally:
        _release(output, partial, descriptor)


def replace_folder(partial: str, output: str) -> None:
    """Puts the folder of a claim in the place of the folder `output`, which goes when the claim ends.

    Where it takes two steps, the end of the claim, or the next run if this one is killed between them, undoes the
    first one.
    """
    if not exchange(partial, output):
        os.rename(output, partial + _OLD)
        rename_new(partial, output)


def remove_leftovers(output: str) -> tuple[str, ...]:
    """Removes what runs that died while they wrote `output` have left, and puts back a folder that one had moved.

    Returns a sentence for all that stays: what has no lock that could tell whether its run is alive, and what cannot
    be removed. Of runs that are alive there is none.
    """
    if is_remote(output):
        return unfinished_notes(output)
    output = without_slash(output)
    folder, name = os.path.split(output)
    try:
        entries = os.listdir(folder or os.curdir)
    except OSError:
        return ()
    found = (_NAME.fullmatch(entry) for entry in entries)
    partials = sorted({match["partial"] for match in found if match and match["output"] == _stem(name)})
    return tuple(filter(None, (_clear(output, os.path.join(folder, partial)) for partial in partials)))


def left_under(partial: str) -> list[str]:
    """What there is under the names of a claim, which may have ended."""
    return [path for path in (partial, *(partial + end for end in (_LOCK, _OLD, _GONE))) if os.path.lexists(path)]


def _claim(output: str) -> tuple[str, int]:
    """A path that no other run uses, and the descriptor of its lock file."""
    folder, name = os.path.split(output)
    for _ in range(_TRIES):
        partial = os.path.join(folder, f"{_stem(name)}.{os.urandom(_RANDOM_BYTES).hex()}.partial")
        try:
            # Who may not open it can neither hold its lock nor remove what it stands for.
            descriptor = create(partial + _LOCK, 0o600)
        except FileExistsError:
            continue
        try:
            is_locked = lock(descriptor)
            # Between the two calls another run may have taken it for a leftover.
            if is_locked is not False and is_at(descriptor, partial + _LOCK):
                os.write(descriptor, _UNLOCKED if is_locked is None else _LOCKED)
                return partial, descriptor
        except BaseException:  # an interrupt as well: the lock is given up
            _unlock(partial, descriptor)
            raise
        _unlock(partial, descriptor)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), output)


def _release(output: str, partial: str, descriptor: int) -> None:
    """Removes what is left under the names of a claim, however often it is interrupted."""
    try:
        if _settle(output, partial):
            _unlock(partial, descriptor)
        else:
            with suppress(OSError):
                close_locked(descriptor)  # the next run finds the lock file, and tries again
    except (KeyboardInterrupt, SystemExit):
        _release(output, partial, descriptor)
        raise


def _unlock(partial: str, descriptor: int) -> None:
    with suppress(OSError):
        close_locked(descriptor)
    with suppress(OSError):
        os.unlink(partial + _LOCK)


def _clear(output: str, partial: str) -> str | None:
    """Removes what one run has left; the sentence on what stays."""
    try:
        descriptor = open_itself(partial + _LOCK)
    except OSError:
        return _kept(partial)
    is_free = lock(descriptor)
    if is_free and _is_ours(descriptor) and _settle(output, partial):
        _unlock(partial, descriptor)
        return None
    close_locked(descriptor)
    return None if is_free is False else _kept(partial)


def _is_ours(descriptor: int) -> bool:
    """Whether a lock file holds the mark of a run whose lock tells; one that died at once wrote less, or nothing."""
    return _LOCKED.startswith(os.read(descriptor, len(_LOCKED) + 1))


def _kept(partial: str) -> str | None:
    paths = left_under(partial)
    if not paths:
        return None  # its run has just ended well
    them = "it" if len(paths) == 1 else "them"
    return f"{', '.join(paths)}: a run that died may have left {them}; remove {them} if no run is writing there."


def _settle(output: str, partial: str) -> bool:
    """Puts back a folder that was moved for another that never came, and removes the rest; whether all is gone."""
    old, gone = partial + _OLD, partial + _GONE
    if _is_folder(old) and not os.path.lexists(output):
        with suppress(OSError):
            rename_new(old, output)
    if os.path.lexists(old) and not os.path.lexists(output):
        return False  # the only whole folder there is
    for path in (gone, old, partial):
        with suppress(OSError):
            _remove(path, gone)
    return not any(map(os.path.lexists, (gone, old, partial)))


def _remove(path: str, gone: str) -> None:
    """Removes a file or a folder, no link and nothing else; a folder under another name, so that it is never in parts.

    Its run may be alive on another machine, on a volume whose locks do not reach there.
    """
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode):
        os.unlink(path)
    elif stat.S_ISDIR(mode):
        if path != gone:
            os.rename(path, gone)
        shutil.rmtree(gone)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _stem(name: str) -> str:
    """What the names beside an output begin with: its own name, or where that is too long a part and its hash."""
    content = os.fsencode(name)
    if len(content) <= _LONGEST_NAME:
        return name
    import hashlib

    return f"{name[:_KEPT_OF_LONGER]}.{hashlib.sha256(content).hexdigest()[:16]}"
