"""A range that is read in small blocks, by several threads at once: fetched in larger pieces, the next ones ahead."""

import concurrent.futures
from _thread import allocate_lock
from typing import Any
from weakref import WeakValueDictionary

from lora_inspect.stores.answers import Answer, Sink
from lora_inspect.stores.requests import begin_fill, result_of

_PIECE = 4 << 20
# How many pieces behind the one that is read are on their way, and how many before it are kept for other threads.
_AHEAD, _KEPT = 2, 1


class Ahead:
    """The pieces of one range of a file, which all who read it have in common; those that were read are dropped."""

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
