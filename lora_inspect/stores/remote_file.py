"""One remote file, unchanged from its header to its last byte, read by ranges; the first bytes are kept.

Several threads may read a range in small blocks: it is fetched in larger pieces, the next ones ahead.
"""

import concurrent.futures
from _thread import allocate_lock
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

from lora_inspect.errors import changed
from lora_inspect.stores import requests
from lora_inspect.stores.client import Answer, Located, Sink
from lora_inspect.stores.requests import begin_fill, result_of
from lora_inspect.stores.stat import START, look_at_file, start_of

_PIECE = 4 << 20
# How many pieces behind the one that is read are on their way, and how many before it are kept for other threads.
_AHEAD, _KEPT = 2, 1


class Ahead:
    """Pieces of one range of a file, shared by all its readers; a piece is dropped when it is read."""

    def __init__(self, address: str, answer: Answer, start: int, stop: int) -> None:
        self._address, self._answer = address, answer
        self.start, self.stop = start, stop
        self._pieces: dict[int, tuple[bytearray, concurrent.futures.Future[Any]]] = {}
        self._lock = allocate_lock()

    def read_into(self, start: int, view: memoryview) -> None:
        """Fills the memory with bytes of the range."""
        while view:
            number, first = divmod(start - self.start, _PIECE)
            memory, future = self._piece(number)
            result_of(future)
            taken = memoryview(memory)[first : first + len(view)]
            view[: len(taken)] = taken
            start, view = start + len(taken), view[len(taken) :]

    def _piece(self, number: int) -> tuple[bytearray, concurrent.futures.Future[Any]]:
        with self._lock:
            for old in [old for old in self._pieces if old < number - _KEPT]:
                del self._pieces[old]
            for wanted in range(number, number + 1 + _AHEAD):
                begin = self.start + wanted * _PIECE
                if wanted not in self._pieces and begin < self.stop:
                    memory = bytearray(min(_PIECE, self.stop - begin))
                    sink = Sink(self._address, begin, memory, self._answer)
                    self._pieces[wanted] = memory, begin_fill(sink)
            return self._pieces[number]


_ranges: "WeakValueDictionary[tuple[str, Answer, int, int], Ahead]" = WeakValueDictionary()
_finding = allocate_lock()


def ahead_of(address: str, answer: Answer, start: int, stop: int) -> Ahead:
    """The pieces of a range, the same for all threads for as long as one of them has it."""
    key = address, answer, start, stop
    with _finding:
        found = _ranges.get(key)
        if found is None:
            found = _ranges[key] = Ahead(address, answer, start, stop)
        return found


class RemoteFile:
    """A file at an address. With the `answer` of an earlier opening it has to be that file still.

    All that is sent is compared to that. Raises LoraInspectError where it is not, and where it cannot be read.
    """

    def __init__(self, address: str, answer: Answer | None = None) -> None:
        self._found = look_at_file(address) if answer is None else Located(address, answer)
        self.address = self._found.address
        self.answer = self._found.answer or Answer(0, 0, "")
        self._start = b""
        self._ahead: Ahead | None = None

    def expect(self, start: int, stop: int) -> None:
        """Says that the bytes of a range are going to be read block after block."""
        if self._ahead is None or (self._ahead.start, self._ahead.stop) != (start, stop):
            self._check(stop)
            self._ahead = ahead_of(self.address, self.answer, start, stop)

    def read_into(self, start: int, memory: bytearray | memoryview) -> None:
        """Fills the memory with the bytes from a position on."""
        view = memoryview(memory).cast("B")
        self._check(start + len(view))
        if self._ahead and self._ahead.start <= start and start + len(view) <= self._ahead.stop:
            self._ahead.read_into(start, view)
            return
        known = self._first(start, start + len(view))
        view[: len(known)] = known
        requests.read_into(self.address, self.answer, start + len(known), view[len(known) :])

    def read_each(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of many ranges (position, how many), in their order."""
        self._check(max((start + count for start, count in ranges), default=0))
        return requests.read_each(self.address, self.answer, ranges)

    def stream(self, start: int, stop: int) -> Iterator[bytearray]:
        """The bytes of a long range, a piece after the other."""
        self._check(stop)
        return requests.stream(self.address, self.answer, start, stop)

    def _first(self, start: int, stop: int) -> bytes:
        """Return the part of a range that is among the first bytes, if these are known or cover the request."""
        if start >= START or (stop > START and not self._start):
            return b""
        self._start = self._start or start_of(self._found)
        return self._start[start:stop]

    def _check(self, stop: int) -> None:
        if stop > self.answer.bytes:
            raise changed(self.address)
