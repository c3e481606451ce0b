"""The journal of a header that is rewritten in place, and its use by a reader.

    FILE.header-journal    the header as it was and as it will be, there before the first byte of it is written

A long name of FILE is shortened there. A killed run may leave a header that is a part of each, and may yet be JSON.
Standard library only.
"""

import os

from lora_inspect.errors import DamagedError, LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.locations import short_stem

JOURNAL_ENDING = ".header-journal"
# What a header is, beside the two that a journal holds.
WHOLE, TORN, OTHER = "whole", "torn", "other"

_MARK = (
    b"A run of lora-inspect rewrites the header of the file that has this one's name without its ending. When no such "
    b"run is alive, `lora-inspect metadata show` puts that header right and removes this file.\n"
)
DIGEST_BYTES = 32


class Journal(NamedTuple):
    """Two headers of the same length, each with the length before it: the old one and the new one."""

    old: bytes
    new: bytes

    def encoded(self) -> bytes:
        """Return the bytes of a whole journal; no part of it is a whole journal."""
        content = _MARK + self.old + self.new
        return content + _digest(content)

    def state(self, header: bytes) -> str:
        """Return the state of `header`: one of the two, a mix of both, or neither."""
        if header in (self.old, self.new):
            return WHOLE
        found, old, new = (int.from_bytes(one, "little") for one in (header, self.old, self.new))
        return TORN if len(header) == len(self.old) and not (found ^ old) & (found ^ new) else OTHER


def journal_of(file: str) -> str:
    """Return the path of a file's journal."""
    folder, name = os.path.split(file)
    return os.path.join(folder, short_stem(name) + JOURNAL_ENDING)


def decoded(content: bytes) -> Journal | None:
    """Return the journal; None if its run died before it was whole, and so before it wrote to the file."""
    headers, digest = content[len(_MARK) : -DIGEST_BYTES], content[-DIGEST_BYTES:]
    if not content.startswith(_MARK) or len(headers) % 2 or digest != _digest(content[:-DIGEST_BYTES]):
        return None
    half = len(headers) // 2
    return Journal(headers[:half], headers[half:])


def is_ours(start: bytes) -> bool:
    """Return True if a file that begins so is a journal, or the start of one from a run that died at once."""
    return start.startswith(_MARK) or _MARK.startswith(start)


def size_of(length: int) -> int:
    """Return the size in bytes of a whole journal of two headers with `length` bytes each."""
    return len(_MARK) + 2 * length + DIGEST_BYTES


def refuse_torn(source: InputFile, length: int) -> None:
    """Raise LoraInspectError if a run left the header of the file, of so many bytes, in parts."""
    path = journal_of(source.path)
    if not source.is_on_disk or not os.path.lexists(path):
        return
    try:
        with InputFile(path) as journal:
            is_whole = journal.identity.bytes == size_of(length)
            found = decoded(bytes(journal.read(0, size_of(length)))) if is_whole else None
    except LoraInspectError:
        if not os.path.lexists(path):
            return  # its run has just ended
        raise
    if found and found.state(bytes(source.read(0, length))) == TORN:
        raise DamagedError(
            source.path,
            "a run that rewrites its header is at work or was killed",
            "run `lora-inspect metadata show` on the file to repair it",
        )


def _digest(content: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(content).digest()
