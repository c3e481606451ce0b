"""Bytes on their way into an open file: from memory, or from an input, moved by the system where it can."""

import os

from lora_inspect.files.input_file import InputFile
from lora_inspect.files.system import copy_in_system, write_at
from lora_inspect.progress import Progress, silent

Buffer = bytes | bytearray | memoryview
_COPY_BYTES = 16 << 20
# What the system is asked to copy at a time, so that it can be told how far it is.
_SYSTEM_BYTES = 64 << 20


def write_all(descriptor: int, buffer: Buffer) -> None:
    """Appends the whole of `buffer`; OSError where the disk refuses."""
    view = memoryview(buffer).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def write_all_at(descriptor: int, buffer: Buffer, position: int) -> int:
    """Writes the whole of `buffer` at a `position`, and returns the one behind it; OSError where the disk refuses."""
    view = memoryview(buffer).cast("B")
    while view:
        written = write_at(descriptor, view, position)
        view, position = view[written:], position + written
    return position


def copy_bytes(source: InputFile, start: int, stop: int, descriptor: int, at: int, progress: Progress = silent) -> None:
    """Writes the bytes `start` to `stop` of an input to the position `at`; OSError where the disk refuses."""
    # Where the system cannot, reading and writing finds out whether the disk itself refuses.
    moved = _copy_in_system(source, start, stop, descriptor, at, progress)
    start, at = start + moved, at + moved
    for data in source.pieces(start, stop, _COPY_BYTES):
        at = write_all_at(descriptor, data, at)
        progress(len(data))


def _copy_in_system(source: InputFile, start: int, stop: int, descriptor: int, at: int, progress: Progress) -> int:
    """Copies as far as the system does it by itself, and returns how many bytes."""
    done = 0
    while source.is_on_disk and start + done < stop:
        count = min(stop - start - done, _SYSTEM_BYTES)
        moved = copy_in_system(source.fileno(), descriptor, count, start + done, at + done)
        if not moved:
            break
        done += moved
        progress(moved)
    return done
