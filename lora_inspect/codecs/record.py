"""The record of a codec: one way in which a base stores weights as codes.

A codec reads tensors of its module and statements of the file. Its blocks say which entries of a weight share a scale:
all of them, a row, or a block of neighbouring rows and columns.

Tensor methods only. A weight is a matrix (out, columns) here, whatever its kernel; scales are (rows, columns) of
blocks, and those at the lower and the right edge may be smaller.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo

Shape = tuple[int, ...]


class UnknownCodec(RefusedError):
    """A tensor is codes whose meaning is not known here."""


class NotRead(Exception):
    """What is said of codes makes them another kind of codes than a codec reads; its text is what says so."""


class BadSetting(Exception):
    """A tensor beside codes holds what cannot be; with its name in the module, and what it holds in words."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(name, what)
        self.name, self.what = name, what


class NoCode(Exception):
    """A number of a weight that no code stands for, whatever its scale; with that number."""

    def __init__(self, value: float) -> None:
        super().__init__(value)
        self.value = value


class CodedTensor(NamedTuple):
    """Codes, and what speaks of them.

    `beside` are the tensors in their module that the codec knows, by their names there. `said` is what JSON in the
    module or in the metadata says of the codes, where there is any. `read` gives the bytes of a small tensor.
    """

    codes: TensorInfo
    beside: Mapping[str, TensorInfo]
    said: Mapping[str, Any]
    read: Callable[[TensorInfo], bytes]


class CodeLayout(NamedTuple):
    """The shape of the weight that codes stand for, and in the codec's own words how they are laid out.

    `together` are the rows that share what they are encoded with: a block of rows begins at a multiple of it. With 0
    all rows share it. `unit` is how many neighbouring numbers of the weight are stored together, and `part` how many of
    these are decoded by themselves, from all codes of their unit; 0 is for whole units.
    """

    shape: Shape
    detail: Any = None
    together: int = 1
    unit: int = 1
    part: int = 0


def as_stored(found: CodedTensor) -> CodeLayout:
    """The layout of codes of which each is an entry of the weight, at its own place."""
    return CodeLayout(found.codes.shape)


class Extremes(NamedTuple):
    """The largest and the smallest number among some rows, in each of the blocks that a codec has there."""

    largest: Any
    smallest: Any

    def joined(self, other: "Extremes") -> "Extremes":
        """Those of the same blocks over the rows of both."""
        return Extremes(self.largest.maximum(other.largest), self.smallest.minimum(other.smallest))


class Encoding(Protocol):
    """How rows of one weight become codes; several threads use it at the same time."""

    def extremes(self, rows: Any, first: int) -> Extremes:
        """What of the rows, the first of which has the number `first`, decides with what they are encoded."""

    def settled(self, seen: Extremes, first: int) -> Any:
        """What the rows are encoded with; raises NoCode where there is nothing of that kind.

        What all rows share is settled for good from the extremes of all, joined.
        """

    def numbers(self, rows: Any, settled: Any, first: int) -> None:
        """Makes of rows of the weight, in place, the numbers that are rounded to codes."""

    def weight(self, numbers: Any, settled: Any, first: int) -> None:
        """Makes of the numbers that codes stand for the rows of the weight, in place."""

    def settings(self, settled: Sequence[Any]) -> Mapping[str, Any]:
        """All tensors of the codec's `settings`, as they then are, by their names in the module.

        `settled` is what each block of rows was encoded with, in their order.
        """


# Where programs read weights of a codec beside others of the same layers that are floats: in every file, each layer by
# what stands beside it; in folders, where a config lists the others; or nowhere, as all are taken for codes.
BY_LAYER, BY_CONFIG, NOWHERE = "by layer", "by config", "nowhere"

# Makes the weight: (codes, what `prepared` made, the number of their first row, the rows of the weight). It writes
# into the rows, which are (rows, columns) in the working type.
Decode = Callable[[Any, Any, int, Any], None]


class Codec(NamedTuple):
    """A way to store weights.

    `name` is unique, `title` is what messages call it. `stored` are the element types of the codes, `settings` the
    names, in the module of a weight, of the tensors without which they cannot be read, each with the element types that
    it may have; `optional` are those that may be missing. `ending` is how the name of codes ends that are no tensor
    called `weight`: the weight has the name before it, and its settings begin with that. `alone` says that nothing is
    beside codes, whatever their names are. `mixes` says where a file is read in which some weights are no codes any
    more. `formats` are the names that ComfyUI has for it, with the element type of the codes; one that is in none of
    its files is never named there.

    `layout` says whether what stands beside codes fits them: None where it does not. It raises NotRead where they are
    codes of another kind. `prepared` takes the tensors beside the codes as they are stored, by name, and the layout,
    and makes what `decode` needs for every block of rows; it raises BadSetting. `decode` gets the codes as numbers, in
    the memory of the rows themselves, but where several share a byte their bytes, one after the other. Without it the
    numbers are the weight. `encoding` takes what `prepared` made and writes rows in the same format; without it the
    weight is only read. Tensor methods alone, so that a codec imports without torch.
    """

    name: str
    title: str
    stored: frozenset[str]
    settings: Mapping[str, frozenset[str]] = MappingProxyType({})
    optional: Mapping[str, frozenset[str]] = MappingProxyType({})
    ending: str = ""
    alone: bool = False
    mixes: str = BY_LAYER
    formats: Mapping[str, str] = MappingProxyType({})
    layout: Callable[[CodedTensor], CodeLayout | None] = as_stored
    prepared: Callable[[Mapping[str, Any], CodeLayout], Any] = lambda tensors, layout: None
    decode: Decode | None = None
    encoding: Callable[[Any], Encoding] | None = None

    @property
    def names(self) -> dict[str, frozenset[str]]:
        """All tensors that it knows beside codes, by their names in the module."""
        return {**self.settings, **self.optional}


# In the module of a weight: JSON whose `format` names its codec.
FORMAT = "comfy_quant"
# In the metadata of a file: the same JSON for many modules.
FORMATS_KEY = "_quantization_metadata"
# The last name of a tensor that says of all weights below its own place that they are scaled.
MARKER = "scaled_fp8"


class Blocks(NamedTuple):
    """The size of a block."""

    rows: int
    columns: int

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """How many blocks a matrix has below and beside each other."""
        return -(-rows // self.rows), -(-columns // self.columns)

    def beside(self, rows: Any) -> Iterator[tuple[Any, slice]]:
        """Views (count, blocks, columns of one) of some rows, and which of the blocks beside each other each has."""
        whole = rows.shape[1] // self.columns
        if whole:
            yield rows[:, : whole * self.columns].unflatten(1, (whole, self.columns)), slice(0, whole)
        if whole * self.columns < rows.shape[1]:
            yield rows[:, whole * self.columns :].unsqueeze(1), slice(whole, None)

    def below(self, first: int, count: int) -> list[slice]:
        """Which of so many rows, the first of which has the number `first`, lie in each row of blocks."""
        cuts = range(first - first % self.rows, first + count, self.rows)
        return [slice(max(start - first, 0), min(start + self.rows - first, count)) for start in cuts]

    def each(self, scale: Any, first: int, count: int) -> Any:
        """The scales of so many rows, (count or 1, blocks), from those of the rows of blocks in which they lie."""
        if self.rows == 1 or scale.shape[0] == 1:
            return scale
        return scale.repeat_interleave(self.rows, 0)[first % self.rows :][:count]


def own_scales(scale: Any, blocks: Blocks, first: int, count: int) -> Any:
    """Those scales of a weight that are of the blocks in which so many rows from `first` on lie."""
    return scale[first // blocks.rows : -(-(first + count) // blocks.rows)]


def multiply(rows: Any, scale: Any, blocks: Blocks, first: int) -> None:
    """Makes q · scale of some rows of q, in place, with the scales of their own blocks."""
    each = blocks.each(scale, first, rows.shape[0]).unsqueeze(-1)
    for part, at in blocks.beside(rows):
        part.mul_(each[:, at])


def divide(rows: Any, scale: Any, blocks: Blocks, first: int) -> None:
    """Makes W / scale of some rows of W, in place, with the scales of their own blocks."""
    each = blocks.each(scale, first, rows.shape[0]).unsqueeze(-1)
    for part, at in blocks.beside(rows):
        part.div_(each[:, at])


def extremes(rows: Any, blocks: Blocks, first: int) -> tuple[Any, Any]:
    """The largest and the smallest number of some rows in each of their blocks, (rows of blocks, blocks)."""
    largest = rows.new_empty(rows.shape[0], -(-rows.shape[1] // blocks.columns))
    smallest = rows.new_empty(largest.shape)
    for part, at in blocks.beside(rows):
        largest[:, at], smallest[:, at] = part.amax(-1), part.amin(-1)
    if blocks.rows == 1:
        return largest, smallest
    below = blocks.below(first, rows.shape[0])
    most, least = largest.new_empty(len(below), largest.shape[1]), smallest.new_empty(len(below), largest.shape[1])
    for number, own in enumerate(below):
        most[number], least[number] = largest[own].amax(0), smallest[own].amin(0)
    return most, least
