"""What a store says of a file, and the memory that the bytes it sends go into. Standard library only."""

from lora_inspect.errors import changed
from lora_inspect.fast_namedtuple import NamedTuple


class Answer(NamedTuple):
    """Which file it is: what it cannot keep when it is replaced or rewritten, as far as its store tells.

    `modified` is the time of its last change in nanoseconds, 0 where that is not told; `tag` is its ETag or its hash.
    """

    bytes: int
    modified: int
    tag: str


class Found(NamedTuple):
    """What lies at an `address`: a file, or a folder, of which there is no `answer`."""

    address: str
    answer: Answer | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.answer is None


class Sink:
    """Memory that is filled with the bytes of a file from the position `start` on, as they come.

    `answer` says which file they have to be of, as soon as that is known.
    """

    def __init__(self, address: str, start: int, memory: bytearray | memoryview, answer: Answer | None = None) -> None:
        self.address = address
        self.answer = answer
        self.start = self.position = start
        self._view = memoryview(memory).cast("B")

    @property
    def stop(self) -> int:
        """The position behind the last byte that is wanted."""
        return self.start + len(self._view)

    @property
    def left(self) -> int:
        """How many bytes are yet to come."""
        return self.stop - self.position

    @property
    def taken(self) -> bytes:
        """The bytes that have come."""
        return bytes(self._view[: self.position - self.start])

    def begin(self, answer: Answer) -> None:
        """Says of which file the next bytes are; LoraInspectError where the ones before were of another.

        What is wanted behind the end of the file is wanted no more.
        """
        if self.answer is not None and answer != self.answer:
            raise changed(self.address)
        self.answer = answer
        self._view = self._view[: max(answer.bytes - self.start, 0)]

    def put(self, data: bytes) -> None:
        """Takes the next bytes; none beyond those that are wanted."""
        data = data[: self.left]
        first = self.position - self.start
        self._view[first : first + len(data)] = data
        self.position += len(data)
