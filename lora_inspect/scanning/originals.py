"""The original among equal files: no link, no copy's name, else the older one, else the first of the list.

A file waits for a later one of the list only where that may be its original: where both have the same size and the same
last bytes, or where its name is that of a copy of the other. So most rows still appear as soon as their file is read.
Of files of one size that were written in the order of the list, no byte is read for this.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import pairwise

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import PEFT_WEIGHTS, set_of
from lora_inspect.files.input_file import InputFile
from lora_inspect.scanning.duplicates import Duplicates
from lora_inspect.scanning.scan_file import ScannedFile
from lora_inspect.stores.address import is_remote

# Browsers, file managers and people write these: `a (1)`, `a - Copy (2)`, `a copy 2`, `a_copy`, `Copy of a`.
_COPY = r"(?:copy of (?P<of>.+)|(?P<stem>.+?)(?: ?\(\d{1,4}\)|(?: - |[ _-])copy(?: ?\(?\d{1,4}\)?)?)+)"


def original_name(name: str) -> str | None:
    """Return the original's name, without its ending, for the name of a copy; None for any other name."""
    found = re.fullmatch(_COPY, name, re.IGNORECASE)
    if not found:
        return None
    inner = found["of"] or found["stem"]
    return original_name(inner) or inner


# The bytes at the end of files of one size that are compared.
_TAIL = 256


class _Candidate(NamedTuple):
    """A file of the list before it is read; the lower `rank` of equal files is the original's.

    `place` is its folder, behind all links, and its name: the same for two paths that lead to one file by links of
    folders only. `bytes` is its size, None where that is not known. `original` is the path of the file that, by its
    name, it is a copy of.
    """

    place: tuple[str, str]
    rank: tuple[bool, bool, int, int]
    bytes: int | None
    original: str | None


class _Equal:
    """Files with the same tensors at the same scales: the place in the list and the path of their original."""

    def __init__(self, place: int, path: str) -> None:
        self.place, self.path = place, path
        self.is_given_back = False


class Originals:
    """A pass over the accounts of a list of files, in its order, that gives them back with their originals named."""

    def __init__(self, paths: Sequence[str]) -> None:
        real_path = cache(os.path.realpath)
        found = [_candidate(path, number, real_path) for number, path in enumerate(paths)]
        self._places = [one.place for one in found]
        self._ranks = [one.rank for one in found]
        self._waits = _last_possible(paths, found)
        self._duplicates = Duplicates()
        # By the path of the first one that was read.
        self._equal: dict[str, _Equal] = {}
        self._held: deque[tuple[int, _Equal | None, ScannedFile]] = deque()
        self._read = 0

    def add(self, one: ScannedFile) -> Iterator[ScannedFile]:
        """Yield the accounts that wait for no file any more, in the order of the list."""
        self._held.append((self._read, self._equal_to(one, self._read), one))
        self._read += 1
        while self._held and self._waits[self._held[0][0]] < self._read:
            place, equal, held = self._held.popleft()
            # One file that the list has twice is no copy of itself.
            is_copy = equal and self._places[equal.place] != self._places[place]
            duplicate_of = equal.path if equal and is_copy else None
            if equal:
                equal.is_given_back = True
            yield replace(held, duplicate_of=duplicate_of, section=None)

    def _equal_to(self, one: ScannedFile, place: int) -> _Equal | None:
        """Return the group of files with the tensors and scales of this one; None for one without tensors."""
        if not one.section:
            return None
        earlier = self._duplicates.earlier(one.path, one.section)
        if earlier is None:
            self._equal[one.path] = _Equal(place, one.path)
            return self._equal[one.path]
        equal = self._equal[earlier]
        # A file that was given back as an original stays one.
        if not equal.is_given_back and self._ranks[place] < self._ranks[equal.place]:
            equal.place, equal.path = place, one.path
        return equal


def _candidate(path: str, number: int, real_path: Callable[[str], str]) -> _Candidate:
    folder, name = os.path.split(path)
    shards = set_of(name)
    stem = shards.stem if shards else os.path.splitext(name)[0]
    original = original_name(stem)
    above, last = os.path.split(folder)
    if original is not None:
        original = os.path.join(folder, original + os.path.splitext(name)[1])
    elif stem == PEFT_WEIGHTS and (inner := original_name(last)):
        original = os.path.join(above, inner, name)
    status, is_link, place = None, False, (folder, name)
    if not is_remote(path):
        with suppress(OSError, ValueError):  # the reading of a file that is gone says so
            place = real_path(folder), name
            is_link = os.path.islink(path)
            status = os.stat(path)
    size = status.st_size if status and stat.S_ISREG(status.st_mode) else None
    rank = (is_link, original is not None, status.st_mtime_ns if status else 0, number)
    return _Candidate(place, rank, size, original)


def _last_possible(paths: Sequence[str], found: Sequence[_Candidate]) -> list[int]:
    """Return, for each file, the place of the last file that may be its original; its own place without one."""
    waits = list(range(len(found)))
    places = {path: number for number, path in enumerate(paths)}
    by_size: dict[int | None, list[_Candidate]] = {}
    for one in found:
        by_size.setdefault(one.bytes, []).append(one)
    mixed = {size for size, own in by_size.items() if any(a.rank > b.rank for a, b in pairwise(own))}
    last: dict[tuple[int, bytes], int] = {}
    for number in sorted(waits, key=lambda number: found[number].rank):
        one = found[number]
        if one.bytes and one.bytes in mixed and (tail := _tail(paths[number], one.bytes)):
            alike = one.bytes, tail
            waits[number] = last[alike] = max(number, last.get(alike, number))
        if one.original is not None:
            waits[number] = max(waits[number], places.get(one.original, number))
    return waits


def _tail(path: str, size: int) -> bytes:
    """Return the last bytes of a file; none of one that cannot be read."""
    try:
        with InputFile(path) as source:
            count = min(_TAIL, size)
            return source.read_few(size - count, count)
    except LoraInspectError:
        return b""
