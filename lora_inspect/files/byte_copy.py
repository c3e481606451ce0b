"""Bytes on their way into an open file: from memory, or from an input, moved by the system where it can."""

import os

from lora_inspect.files.input_file import InputFile
from lora_inspect.files.system import copy_in_system
from lora_inspect.progress import Progress, silent

Buffer = bytes | bytearray | memoryview
_COPY_BYTES = 16 << 20
# What the system is asked to copy at a time, so that it can be told how far it is.
_SYSTEM_BYTES = 256 << 20


def write_all(descriptor: int, buffer: Buffer) -> None:
    """Writes the whole of `buffer`; OSError where the disk refuses."""
    view = memoryview(buffer).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def copy_bytes(source: InputFile, start: int, stop: int, descriptor: int, progress: Progress = silent) -> None:
    """Writes the bytes `start` to `stop` of an input; OSError where the disk refuses."""
    # Where the system cannot, reading and writing finds out whether the disk itself refuses.
    position = _copy_in_system(source, start, stop, descriptor, progress)
    while position < stop:
        data = source.read(position, min(stop - position, _COPY_BYTES))
        write_all(descriptor, data)
        position += len(data)
        progress(len(data))


def _copy_in_system(source: InputFile, position: int, stop: int, descriptor: int, progress: Progress) -> int:
    """Copies as far as the system does it by itself, and returns the position reached."""
    while position < stop:
        moved = copy_in_system(source.fileno(), descriptor, min(stop - position, _SYSTEM_BYTES), position)
        if not moved:
            break
        position += moved
        progress(moved)
    return position
