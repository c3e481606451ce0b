"""The one exception that a user is meant to read, and the sentences for what the system refuses."""

import errno
import os

from lora_inspect.sentences import SENTENCE, shortened

_CHECK = "check the path and its rights"
_WAYS_OUT = {
    errno.ENOSPC: "free space, or send the output elsewhere",
    errno.EDQUOT: "free space, or send the output elsewhere",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, as the system has too many files open",
    errno.EIO: "check the disk, or fetch the file again",
}


class LoraInspectError(Exception):
    """A file or a request that is refused: one sentence with the file, the key, what was expected and the way out."""

    def __str__(self) -> str:
        return shortened(super().__str__(), SENTENCE)


def changed(path: str) -> LoraInspectError:
    """The error for a file that did not stay as it was."""
    return LoraInspectError(f"{path}: it changed while it was read; run the command again.")


class DiskRefused(LoraInspectError):
    """What is said where the disk does not take an output, for the `reason` that the system gives."""

    def __init__(self, sentence: str, reason: str | None) -> None:
        super().__init__(sentence)
        self.reason = reason


def of_system(error: OSError, path: str = "") -> str:
    """The sentence about an error of the system. `path` is the file that it came with, where it names none itself."""
    where = os.fsdecode(error.filename or path) if isinstance(error.filename or path, (str, bytes)) else path
    return f"{where and where + ': '}{error.strerror or error}; {_WAYS_OUT.get(error.errno or 0, _CHECK)}."
