"""An output in the making, and its way to its place once parts of it are complete.

A store copies some parts of an output by itself from an input: those are neither read nor sent.
"""

import os
from collections.abc import Iterable, Iterator

from lora_inspect.files.input_file import answer_of
from lora_inspect.files.safetensors.header import Span
from lora_inspect.stores.address import scheme_of
from lora_inspect.stores.client import Answer, Borrowed, part_size


class Borrowing:
    """The `parts` of one file, of an output at an `address`, that its store copies; `rest` fills them."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.parts: list[Borrowed] = []

    @property
    def bytes(self) -> int:
        """The number of bytes that the store copies."""
        return sum(part.stop - part.start for part in self.parts)

    def rest(self, spans: Iterable[Span], size: int) -> Iterator[Span]:
        """Yield the remaining spans to write of a file of `size` bytes: the bytes that do not fill whole parts."""
        step = part_size(size)
        for span in spans:
            answer = self._answer(span)
            end = span.at + span.stop - span.start
            first = -(-span.at // step) * step
            last = end if end == size else end // step * step
            if first >= last or not answer:
                yield span
                continue
            for at in range(first, last, step):
                start = span.start + at - span.at
                stop = start + min(step, last - at)
                self.parts.append(Borrowed(span.info.file, answer, start, stop, at))
            for start, stop in ((span.at, first), (last, end)):
                if start < stop:
                    yield Span(span.info, span.start + start - span.at, span.start + stop - span.at, start)

    def _answer(self, span: Span) -> Answer | None:
        """Return the store's answer for the file of a span; None if the file is not in the output's kind of store."""
        file, identity = span.info.file, span.info.identity
        if not identity or not identity.tag or scheme_of(file) != scheme_of(self._address):
            return None
        return answer_of(identity)


class PendingOutput:
    """An output on its way: `path` is where it is made, which is its own place on a disk."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def bytes(self) -> int:
        """The size of the files that have arrived."""
        if os.path.isfile(self.path):
            return os.path.getsize(self.path)
        return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(self.path) for name in names)

    def borrowing(self) -> Borrowing | None:
        """Return a record of a file's parts that the store copies; None if it copies nothing."""
        return None

    def send(self, file: str, borrowing: Borrowing | None = None) -> None:
        """Take a file of the output that will not change any more."""
