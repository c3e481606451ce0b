"""Messages for users: errors by subject, and the sentences for the system's refusals."""

import errno
import os
from collections.abc import Callable

from lora_inspect.sentences import SENTENCE, shortened

_CHECK = "check the path and its rights"
_WAYS_OUT = {
    errno.ENOSPC: "free space, or send the output elsewhere",
    errno.EDQUOT: "free space, or send the output elsewhere",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, as the system has too many open files",
    errno.EIO: "check the disk, or fetch the file again",
}
# How a command ends that is refused or answers no, and one that could not do its work.
REFUSED_STATUS, FAILED_STATUS = 1, 3


class LoraInspectError(Exception):
    """A refused file or request, in one sentence: `path`, its `problem` and the `fix`, as far as known.

    A sentence that does not begin with a path is all in `problem`. `code` names the kind of error, for programs.
    """

    code = "refused"
    # Of the process that it ends.
    status = REFUSED_STATUS

    path: str
    problem: str
    fix: str
    # As OSError has them, in those errors that are of that kind.
    filename: str | None
    strerror: str | None

    def __init__(self, said: str = "", problem: str | None = None, fix: str = "") -> None:
        self.args = (said,) if problem is None else (said, problem, fix)
        self.path, self.problem, self.fix = ("", said, "") if problem is None else (said, problem, fix)
        if isinstance(self, OSError):
            self.filename, self.strerror = self.path or None, self.problem

    def __str__(self) -> str:
        if len(self.args) == 1:
            return shortened(self.problem, SENTENCE)
        way_out = self.fix and f"; {self.fix}"
        return shortened(f"{self.path}: {self.problem}{way_out}.", SENTENCE)

    def __reduce__(self) -> tuple[object, ...]:
        return _remade, (type(self), self.args), self.__dict__

    def replace(self, old: str, new: str) -> None:
        """Replace `old` by `new` in the message, as the name of an output for the temporary file."""
        LoraInspectError.__init__(self, *(text.replace(old, new) for text in self.args))

    def spell(self, spelling: Callable[[str], str]) -> None:
        """Put the problem and the fix into another spelling."""
        path, *others = self.args if len(self.args) > 1 else ("", *self.args)
        LoraInspectError.__init__(self, *([path] if path else []), *map(spelling, others))

    def saying(self, says: str) -> "LoraInspectError":
        """Make an error of the same kind that says something else."""
        return _remade(type(self), (says,))

    @classmethod
    def of(cls, path: str, says: str) -> "LoraInspectError":
        """Return the error of a text that may have its fix after the last semicolon."""
        problem, _, fix = says.rpartition("; ")
        return cls(path, problem or says, fix if problem else "")


def _remade(kind: type[LoraInspectError], said: tuple[str, ...]) -> LoraInspectError:
    """Make an error of a kind that may be raised with other arguments than it has."""
    error = kind.__new__(kind, *said)
    LoraInspectError.__init__(error, *said)
    return error


class RefusedError(LoraInspectError, ValueError):
    """A request that is impossible with these files, or possible only with an option."""


class DamagedError(LoraInspectError, ValueError):
    """A file that does not follow its format."""

    code = "damaged"


class AmbiguousError(LoraInspectError, ValueError):
    """Files with several meanings, and nothing to decide between them."""

    code = "ambiguous"


class WouldOverwriteError(LoraInspectError, FileExistsError):
    """An output path that already exists."""

    code, errno = "would-overwrite", errno.EEXIST


class NotFoundError(LoraInspectError, FileNotFoundError):
    """A path or an address with nothing at it."""

    code, status, errno = "not-found", FAILED_STATUS, errno.ENOENT


class CouldNotWorkError(LoraInspectError, OSError):
    """A failure of the disk, the network or another part of the system."""

    code, status = "could-not-work", FAILED_STATUS


class NeedsLibraryError(LoraInspectError, ImportError):  # type: ignore[misc]
    """A missing library that the work needs."""

    code, status = "needs-library", FAILED_STATUS


class NeedsTorchError(NeedsLibraryError):
    """Missing torch, for a command that computes."""

    code = "needs-torch"


class DiskRefused(CouldNotWorkError):
    """The error for a disk that does not take an output, for the `reason` that the system gives."""

    def __init__(self, said: str, problem: str | None = None, fix: str = "", reason: str | None = None) -> None:
        super().__init__(said, problem, fix)
        self.reason = reason


_KINDS = (
    *(RefusedError, DamagedError, AmbiguousError, WouldOverwriteError),
    *(NotFoundError, CouldNotWorkError, NeedsLibraryError, NeedsTorchError),
)


def kind_of(error: BaseException) -> type[LoraInspectError]:
    """Return the class of an error that ends a command or a part of it; a defect counts as CouldNotWorkError."""
    if isinstance(error, LoraInspectError):
        return type(error)
    if isinstance(error, FileNotFoundError):
        return NotFoundError
    return NeedsLibraryError if isinstance(error, ImportError) else CouldNotWorkError


def with_code(code: str) -> type[LoraInspectError]:
    """Return the class that has a code."""
    return next((kind for kind in _KINDS if kind.code == code), RefusedError)


def changed(path: str) -> CouldNotWorkError:
    """Return the error for a file that changed while it was read."""
    return CouldNotWorkError(path, "it changed while it was read", "run the command again")


def of_system(error: OSError, path: str = "") -> LoraInspectError:
    """Return the error for an error of the system; `path` is its file if it names none itself."""
    if isinstance(error, LoraInspectError):
        return error
    where = os.fsdecode(error.filename or path) if isinstance(error.filename or path, (str, bytes)) else path
    kind = kind_of(error)
    problem, fix = str(error.strerror or error), _WAYS_OUT.get(error.errno or 0, _CHECK)
    return kind(where, problem, fix) if where else kind(f"{problem}; {fix}.")
