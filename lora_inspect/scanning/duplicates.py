"""Files with the same tensors, byte for byte, whatever their metadata; most files need no read for this.

Files are compared by the sizes of their data, then by small samples of it, and only then by their tables of tensors and
a hash of all the data.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.header import TensorInfo

_SAMPLES, _SAMPLE_BYTES = 8, 1 << 12
_PIECE_BYTES = 1 << 20


class Range(NamedTuple):
    """The data section of one file: what follows its header."""

    file: str
    start: int
    stop: int
    identity: Identity


class DataSection(NamedTuple):
    """The place and the number of a checkpoint's tensors: cheap facts of each file."""

    tensors: int
    ranges: tuple[Range, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that two files with the same tensors share, and that differ between most others."""
        return (self.tensors, *(one.stop - one.start for one in self.ranges))


def data_section(checkpoint: Checkpoint) -> DataSection | None:
    """That of a checkpoint; None for one without a byte of data."""
    if len(checkpoint.files) == 1:
        tensors = checkpoint.tensors  # in file order
        ends = [(next(iter(tensors.values())), next(reversed(tensors.values())))] if tensors else []
    else:
        by_file: dict[str, list[TensorInfo]] = {}
        for info in checkpoint.tensors.values():
            by_file.setdefault(info.file, []).append(info)
        ends = [(infos[0], infos[-1]) for infos in by_file.values()]
    ranges = tuple(
        Range(first.file, first.start, last.stop, checkpoint.inputs[first.file])
        for first, last in ends
        if last.stop > first.start
    )
    return DataSection(len(checkpoint.tensors), ranges) if ranges else None


class Duplicates:
    """Finds, of files given one after the other, the first that held the same tensors."""

    def __init__(self) -> None:
        self._alike: dict[tuple[int, ...], list[_Known]] = {}

    def earlier(self, path: str, section: DataSection) -> str | None:
        """The path of the first file with the same tensors; None where this one is the first.

        A file that cannot be read any more is like no other.
        """
        known = self._alike.setdefault(section.sizes, [])
        new = _Known(path, section)
        try:
            found = next((one.path for one in known if one.is_same(new)), None) if known else None
        except (LoraInspectError, OSError):
            return None
        if found is None:
            known.append(new)
        return found


class _Known:
    """A file whose bytes are looked at as late and as little as possible."""

    def __init__(self, path: str, section: DataSection) -> None:
        self.path = path
        self._ranges = section.ranges
        self._sample: bytes | None = None
        self._digest: bytes | None = None

    def is_same(self, other: "_Known") -> bool:
        """Return True if both hold the same bytes, as two names of one file do."""
        if [one.identity for one in self._ranges] == [one.identity for one in other._ranges]:
            return True
        return self._sampled() == other._sampled() and self._hashed() == other._hashed()

    def _sampled(self) -> bytes:
        if self._sample is None:
            self._sample = _hash(self._ranges, _samples)
        return self._sample

    def _hashed(self) -> bytes:
        if self._digest is None:
            self._digest = _table(open_checkpoint(self.path)) + _hash(self._ranges, _pieces)
        return self._digest


def _table(checkpoint: Checkpoint) -> bytes:
    """A digest of the names, types, shapes and order of the tensors."""
    rows = (f"{info.name}\0{info.dtype}{info.shape}" for info in checkpoint.tensors.values())
    return hashlib.sha256("\n".join(rows).encode()).digest()


def _hash(ranges: Iterable[Range], parts: Callable[[Range], Iterator[tuple[int, int]]]) -> bytes:
    """That of the `parts` of each range, each given by where it begins and its size."""
    digest = hashlib.sha256()
    for one in ranges:
        with InputFile(one.file, one.identity) as source:
            for start, size in parts(one):
                digest.update(source.read(start, size))
    return digest.digest()


def _samples(one: Range) -> Iterator[tuple[int, int]]:
    """Yield the starts and sizes of a few pieces that are spread evenly over a range."""
    size = min(_SAMPLE_BYTES, one.stop - one.start)
    for number in range(_SAMPLES):
        yield one.start + (one.stop - one.start - size) * number // (_SAMPLES - 1), size


def _pieces(one: Range) -> Iterator[tuple[int, int]]:
    """All of a range, a piece after the other."""
    for start in range(one.start, one.stop, _PIECE_BYTES):
        yield start, min(_PIECE_BYTES, one.stop - start)
