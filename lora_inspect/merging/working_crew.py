"""The threads that compute with the weights of a base, each with memory and an open file of its own."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from heapq import merge
from operator import itemgetter

from lora_inspect.files.input_file import HeldInput, InputFile
from lora_inspect.files.safetensors.header import Span, TensorInfo
from lora_inspect.files.safetensors.writer import Writer
from lora_inspect.maths.tensors import RowBlocks
from lora_inspect.maths.torch_threads import computing_threads, one_thread, own_threads
from lora_inspect.merging.threads import Crew, Job, Worker
from lora_inspect.progress import Progress

# More threads than this wait for each other's turn in Python more than they compute.
MOST_THREADS = 8
# How much memory the factors of all weights, and what their codes are read with, may take that are computed with at the
# same time.
FACTOR_BYTES = 64 << 20
# What one thread copies before it looks for something else to do.
COPIED_BYTES = 32 << 20


class Tools:
    """The own objects of each thread: memory that is reused, and the base file that it reads."""

    def __init__(self, elements: int) -> None:
        self._source = HeldInput()
        self.blocks = RowBlocks(elements)

    def source(self, info: TensorInfo) -> InputFile:
        """Return the file of `info`, which stays open until a tensor of another file is read."""
        return self._source.of(info.file, info.identity)

    def close(self) -> None:
        """Close the file."""
        self._source.close()


@contextmanager
def working_crew(elements: int) -> Iterator[Crew[Tools]]:
    """Yield a crew with one thread for each that may compute, with blocks of at most so many elements."""
    tools = [Tools(elements) for _ in range(computing_threads(MOST_THREADS))]
    with ExitStack() as opened:
        for own in tools:
            opened.callback(own.close)
        opened.enter_context(own_threads())
        yield Crew(tools, FACTOR_BYTES, one_thread)


def copying(writer: Writer, spans: Iterable[Span]) -> Iterator[tuple[int, Job[Tools]]]:
    """Yield (position in the file, job) for all pieces that are copied unchanged."""
    for span in spans:
        for piece in span.pieces(COPIED_BYTES):
            yield piece.at, Job(partial(_copy, writer, piece))


def run_in_order(crew: Crew[Tools], parts: Iterable[Iterable[tuple[int, Job[Tools]]]], progress: Progress) -> None:
    """Make the crew do (position, job)s in the order of their positions; each of the `parts` has them in order.

    Each is made when it is due: those of a model of very many weights would take memory.
    """
    crew.run((job for _, job in merge(*parts, key=itemgetter(0))), progress)


def _copy(writer: Writer, span: Span, member: Worker[Tools]) -> None:
    writer.copy_span(span, member.tools.source(span.info), member.done)
