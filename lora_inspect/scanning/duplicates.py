"""Files with the same tensors, byte for byte, at the same scales; most files need no read for this.

Metadata and configs count by the scales that they give. Files are compared by these scales and the sizes of their data,
then by small samples of it, and only then by their tables of tensors and all of the data.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.stores.address import is_remote

_SAMPLES, _SAMPLE_BYTES = 8, 1 << 12
# They stay near the processor.
_PIECE_BYTES = 1 << 16


class Range(NamedTuple):
    """The data section of one file: the bytes after its header."""

    file: str
    start: int
    stop: int
    identity: Identity


# The algorithm and the scale of neighbouring changes, None for an unknown scale, with the number of these changes.
ScaleRun = tuple[str, float | None, int]


class DataSection(NamedTuple):
    """The place and the number of a checkpoint's tensors, and the scales of its changes: cheap facts of each file."""

    tensors: int
    ranges: tuple[Range, ...]
    scales: tuple[ScaleRun, ...] = ()

    @property
    def traits(self) -> tuple[object, ...]:
        """The sizes and scales that two files with the same tensors share, and that differ between most others."""
        return (self.scales, self.tensors, *(one.stop - one.start for one in self.ranges))


def scale_runs(changes: Iterable[Contribution]) -> tuple[ScaleRun, ...]:
    """Return the scales of a file's changes in their order, each with the number of neighbours that share it."""
    runs = groupby((change.algorithm.name, change.scale) for change in changes)
    return tuple((algorithm, scale, sum(1 for _ in run)) for (algorithm, scale), run in runs)


def data_section(checkpoint: Checkpoint, scales: tuple[ScaleRun, ...] = ()) -> DataSection | None:
    """Return the data section of a checkpoint with these scales; None for one without a byte of data."""
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
    return DataSection(len(checkpoint.tensors), ranges, scales) if ranges else None


class Duplicates:
    """Finds, of files given one after the other, the first that held the same tensors at the same scales."""

    def __init__(self) -> None:
        self._alike: dict[tuple[object, ...], _OfOneSize] = {}

    def earlier(self, path: str, section: DataSection) -> str | None:
        """Return the path of the first file with the same tensors and scales; None if this one is the first.

        A file that cannot be read any more is like no other.
        """
        traits = section.traits
        alike = self._alike.get(traits)
        if alike is None:
            alike = self._alike[traits] = _OfOneSize()
        try:
            return alike.earlier(_Known(path, section))
        except (LoraInspectError, OSError):
            return None


class _OfOneSize:
    """Files of the same scales with as many bytes in as many tensors.

    A lone one is not read; others are known by their samples.
    """

    def __init__(self) -> None:
        self._lone: _Known | None = None
        self._by_sample: dict[bytes, list[_Known]] | None = None
        self._paths: dict[tuple[Identity, ...], str] = {}

    def earlier(self, new: "_Known") -> str | None:
        """Return the path of the first one with the same tensors, also where the two are names of one file."""
        if known := self._paths.get(new.identities):
            return known
        found = self._same_as(new)
        self._paths[new.identities] = found or new.path
        return found

    def _same_as(self, new: "_Known") -> str | None:
        if self._by_sample is None:
            if self._lone is None:
                self._lone = new
                return None
            self._by_sample = {}
            with suppress(LoraInspectError, OSError):  # where it cannot be read any more, it is like no other
                self._by_sample[self._lone.sample()] = [self._lone]
        known = self._by_sample.setdefault(new.sample(), [])
        for one in known:
            with suppress(LoraInspectError, OSError):  # the next one may be there still
                if one.is_same(new):
                    return one.path
        known.append(new)
        return None


class _Known:
    """A file of the list; its bytes are read only when needed, and as few as possible."""

    def __init__(self, path: str, section: DataSection) -> None:
        self.path = path
        self._ranges = section.ranges
        self._digest: bytes | None = None
        self._table: bytes | None = None

    @property
    def identities(self) -> tuple[Identity, ...]:
        """Those of its files."""
        return tuple(one.identity for one in self._ranges)

    def sample(self) -> bytes:
        """Return a digest of small pieces of the data."""
        return _hash(self._ranges, _samples)

    def is_same(self, other: "_Known") -> bool:
        """Return True if both hold the same tensors."""
        if self._tabled() != other._tabled():
            return False
        # What has to be fetched is fetched once, however many files it is compared with.
        if any(is_remote(one.file) for one in (*self._ranges, *other._ranges)):
            return self._hashed() == other._hashed()
        return all(map(_are_same, self._ranges, other._ranges))

    def _tabled(self) -> bytes:
        if self._table is None:
            self._table = _table(open_checkpoint(self.path))
        return self._table

    def _hashed(self) -> bytes:
        if self._digest is None:
            self._digest = _hash(self._ranges, _pieces)
        return self._digest


def _table(checkpoint: Checkpoint) -> bytes:
    """Return a digest of the names, types, shapes and order of the tensors."""
    rows = (f"{info.name}\0{info.dtype}{info.shape}" for info in checkpoint.tensors.values())
    return hashlib.sha256("\n".join(rows).encode()).digest()


def _are_same(one: Range, other: Range) -> bool:
    """Return True if two ranges of one size hold the same bytes; they are read up to the first difference."""
    with InputFile(one.file, one.identity) as first, InputFile(other.file, other.identity) as second:
        ours, theirs = bytearray(_PIECE_BYTES), bytearray(_PIECE_BYTES)
        for start, size in _pieces(one):
            if size < _PIECE_BYTES:
                ours, theirs = bytearray(size), bytearray(size)
            first.read_into(start, ours)
            second.read_into(other.start + start - one.start, theirs)
            if ours != theirs:
                return False
    return True


def _hash(ranges: Iterable[Range], parts: Callable[[Range], Iterator[tuple[int, int]]]) -> bytes:
    """Return the hash of the `parts` of each range, each given by its start and its size."""
    digest = hashlib.sha256()
    for one in ranges:
        with InputFile(one.file, one.identity) as source:
            for start, size in parts(one):
                digest.update(source.read_few(start, size))
    return digest.digest()


def _samples(one: Range) -> Iterator[tuple[int, int]]:
    """Yield the starts and sizes of a few pieces that are spread evenly over a range."""
    size = min(_SAMPLE_BYTES, one.stop - one.start)
    for number in range(_SAMPLES):
        yield one.start + (one.stop - one.start - size) * number // (_SAMPLES - 1), size


def _pieces(one: Range) -> Iterator[tuple[int, int]]:
    """Yield all of a range, a piece after the other."""
    for start in range(one.start, one.stop, _PIECE_BYTES):
        yield start, min(_PIECE_BYTES, one.stop - start)
