"""One remote file: the same from its header to its last byte, read by ranges of which the first bytes are kept."""

from collections.abc import Iterator, Sequence

from lora_inspect.errors import changed
from lora_inspect.stores import requests
from lora_inspect.stores.ahead import Ahead, ahead_of
from lora_inspect.stores.answers import Answer, Found
from lora_inspect.stores.stat import START, look_at_file, start_of


class RemoteFile:
    """A file at an address. With the `answer` of an earlier opening it has to be that file still.

    All that is sent is compared to that. Raises LoraInspectError where it is not, and where it cannot be read.
    """

    def __init__(self, address: str, answer: Answer | None = None) -> None:
        self._found = look_at_file(address) if answer is None else Found(address, answer)
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
        """What of a range is among the first bytes, where these are known or are all that is asked for."""
        if start >= START or (stop > START and not self._start):
            return b""
        self._start = self._start or start_of(self._found)
        return self._start[start:stop]

    def _check(self, stop: int) -> None:
        if stop > self.answer.bytes:
            raise changed(self.address)
