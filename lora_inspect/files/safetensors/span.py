"""Bytes of tensors that go from one file into another as they are."""

from collections.abc import Iterator

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo


class Span(NamedTuple):
    """Bytes `start` to `stop` of the file that the tensor `info` is in, and where they are written.

    They are whole tensors that lie one behind the other in both files, or a part of these.
    """

    info: TensorInfo
    start: int
    stop: int
    at: int

    def pieces(self, most: int) -> Iterator["Span"]:
        """Spans of at most so many bytes, one behind the other."""
        for start in range(self.start, self.stop, most):
            stop = min(start + most, self.stop)
            yield self._replace(start=start, stop=stop, at=self.at + start - self.start)
