"""Temporary names next to an output that only one run uses, and leftovers of runs that died.

    OUT.<random>.partial.lock   locked as long as the run lives; its content says so
    OUT.<random>.partial        the file or the folder that grows; after an exchange the folder that was replaced
    OUT.<random>.partial.old    the folder to be replaced, where the system cannot exchange two in one step
    OUT.<random>.partial.gone   a folder that is being removed

The lock file is made first and removed last, so that each of the other names has a lock file, too.
"""

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lora_inspect.files.deferred_signals import noted_signals
from lora_inspect.files.locations import short_stem
from lora_inspect.files.safetensors.header_recovery import JOURNAL_ENDING
from lora_inspect.files.store_outputs import unfinished_notes
from lora_inspect.files.system import close_locked, create, exchange, is_at, lock, open_itself, rename_new
from lora_inspect.stores.address import is_remote

_LOCK, _OLD, _GONE = ".lock", ".old", ".gone"
_NAME = re.compile(r"(?s)(?P<partial>(?P<output>.+)\.[0-9a-f]{16}\.partial)(?:\.(?:lock|old|gone))?")
_RANDOM_BYTES, _TRIES = 8, 100

_LOCKED = (
    b"A run of lora-inspect writes beside this file and holds its lock. When no such run is alive, this file and what "
    b"has its name without .lock may be removed. A folder with .old instead is what stood in the output's place.\n"
)
_UNLOCKED = b"A run of lora-inspect writes beside this file, in a place without locks. " + _LOCKED.partition(b". ")[2]


def is_leftover(name: str) -> bool:
    """Return True if this may be the name of a run's leftover file or folder."""
    return _NAME.fullmatch(name) is not None or name.endswith(JOURNAL_ENDING)


def is_of_dead_run(path: str) -> bool:
    """Return True if the path belongs to a run that died, and nothing of it can still be wanted."""
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
    """Return the path without slashes at its end."""
    return output.rstrip(os.sep + (os.altsep or ""))


@contextmanager
def claimed(output: str) -> Iterator[str]:
    """Yield a path next to `output` for a file or folder that replaces it; leftovers are removed at the end.

    Raises OSError if nothing can be written next to `output`.
    """
    output = without_slash(output)
    claim = None
    try:
        # A signal while the lock file is made would come before anything knows its name.
        with noted_signals():
            claim = _claim(output)
        yield claim[0]
    finally:
        if claim:
            _release(output, *claim)


def replace_folder(partial: str, output: str) -> None:
    """Replace the folder `output` by the folder of a claim; the old one goes when the claim ends.

    If this takes two steps, the end of the claim undoes the first one. If this run is killed between them, the next run
    does that.
    """
    if not exchange(partial, output):
        os.rename(output, partial + _OLD)
        rename_new(partial, output)


def remove_leftovers(output: str) -> tuple[str, ...]:
    """Remove leftovers of runs that died while they wrote `output`, and restore a folder that one had moved.

    Returns a sentence for everything that stays: leftovers without a lock that shows whether their run is alive, and
    leftovers that cannot be removed. Those of live runs have none.
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
    partials = sorted({match["partial"] for match in found if match and match["output"] == short_stem(name)})
    return tuple(filter(None, (_clear(output, os.path.join(folder, partial)) for partial in partials)))


def left_under(partial: str) -> list[str]:
    """Return the existing paths of a claim, which may have ended."""
    return [path for path in (partial, *(partial + end for end in (_LOCK, _OLD, _GONE))) if os.path.lexists(path)]


def _claim(output: str) -> tuple[str, int]:
    """Return a path that no other run uses, and the descriptor of its lock file."""
    folder, name = os.path.split(output)
    for _ in range(_TRIES):
        partial = os.path.join(folder, f"{short_stem(name)}.{os.urandom(_RANDOM_BYTES).hex()}.partial")
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
    """Remove the leftovers of a claim, even if interrupted several times."""
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
    """Remove the leftovers of one run; return a sentence if something stays."""
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
    """Return True if a lock file has the mark of a run with a real lock; a run that died at once wrote less."""
    return _LOCKED.startswith(os.read(descriptor, len(_LOCKED) + 1))


def _kept(partial: str) -> str | None:
    paths = left_under(partial)
    if not paths:
        return None  # its run has just ended well
    them = "it" if len(paths) == 1 else "them"
    return f"{', '.join(paths)}: a run that died may have left {them}; remove {them} if no run is writing there."


def _settle(output: str, partial: str) -> bool:
    """Restore a folder that was moved for another that never came, and remove the rest; return True if all is gone."""
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
    """Remove a file or a folder, never a link; rename a folder first, so that its name never holds only parts.

    Its run may be alive on another machine, if the locks of the volume do not reach there.
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
