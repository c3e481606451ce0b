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
    """A tensor of codes that lora-inspect cannot decode."""


class NotRead(Exception):
    """Codes of another kind than the codec reads; the text gives the evidence."""


class BadSetting(Exception):
    """A tensor next to codes that holds an invalid value; with its name in the module and a description."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(name, what)
        self.name, self.what = name, what


class NoCode(Exception):
    """A number of a weight that no code can represent under any scale; with that number."""

    def __init__(self, value: float) -> None:
        super().__init__(value)
        self.value = value


class CodedTensor(NamedTuple):
    """Codes, with the tensors and the JSON that describe them.

    `beside` are the tensors in their module that the codec knows, by their names there. `said` is the JSON about the
    codes in the module or in the metadata, if any. `read` gives the bytes of a small tensor.
    """

    codes: TensorInfo
    beside: Mapping[str, TensorInfo]
    said: Mapping[str, Any]
    read: Callable[[TensorInfo], bytes]


class CodeLayout(NamedTuple):
    """The shape of a decoded weight, and the layout of its codes in the codec's own terms.

    `together` is the number of rows that share their scales: a block of rows begins at a multiple of it. With 0 all
    rows share them. `unit` is the number of neighbouring entries of the weight that are stored together, and `part` the
    number that is decoded at a time, from all codes of the unit; 0 is for whole units.
    """

    shape: Shape
    detail: Any = None
    together: int = 1
    unit: int = 1
    part: int = 0


def as_stored(found: CodedTensor) -> CodeLayout:
    """Return the layout of codes with one code for each entry of the weight, in the same place."""
    return CodeLayout(found.codes.shape)


class Extremes(NamedTuple):
    """The largest and the smallest number among some rows, in each of the blocks that a codec has there."""

    largest: Any
    smallest: Any

    def joined(self, other: "Extremes") -> "Extremes":
        """Return the extremes of the same blocks over the rows of both."""
        return Extremes(self.largest.maximum(other.largest), self.smallest.minimum(other.smallest))


class Encoding(Protocol):
    """A writer of rows of one weight as codes; several threads use it at the same time."""

    def extremes(self, rows: Any, first: int) -> Extremes:
        """Return the extremes of the rows from row `first` on, which decide how they are encoded."""

    def settled(self, seen: Extremes, first: int) -> Any:
        """Return the scales for the rows; raises NoCode if no scale works.

        Scales that all rows share are computed once, from the joined extremes of all rows.
        """

    def numbers(self, rows: Any, settled: Any, first: int) -> None:
        """Turn rows of the weight, in place, into the numbers that are rounded to codes."""

    def weight(self, numbers: Any, settled: Any, first: int) -> None:
        """Turn the numbers of codes, in place, into the rows of the weight."""

    def settings(self, settled: Sequence[Any]) -> Mapping[str, Any]:
        """Return all tensors of the codec's `settings` after encoding, by their names in the module.

        `settled` has the scales of each block of rows, in order.
        """


# Where programs read weights of a codec beside others of the same layers that are floats: in every file, each layer by
# what stands beside it; in folders, where a config lists the others; or nowhere, as all are taken for codes.
BY_LAYER, BY_CONFIG, NOWHERE = "by layer", "by config", "nowhere"

# Makes the weight: (codes, what `prepared` made, the number of their first row, the rows of the weight). It writes
# into the rows, which are (rows, columns) in the working type.
Decode = Callable[[Any, Any, int, Any], None]


class Codec(NamedTuple):
    """A way to store weights.

    `name` is unique, `title` is its name in messages. `stored` are the element types of the codes. `settings` are the
    tensors in the module of a weight that decoding needs: their names, each with its element types; `optional`
    tensors may be missing. `ending` is the end of a code tensor's name if that is not `weight`: the weight has the
    name before it, and its settings begin with that. `alone` says that codes have no tensors next to them, and any
    name. `mixes` says where programs read files in which other weights are not codes. `formats` are ComfyUI's names for
    it, with the element type of the codes; a codec that ComfyUI does not write has none.

    `layout` returns None where the tensors next to the codes do not match them, and raises NotRead for codes of another
    kind. `prepared` takes these tensors as they are stored, by name, and the layout. It returns the argument that
    `decode` needs for every block of rows, and raises BadSetting. `decode` gets the codes as numbers, in the memory of
    the rows themselves; if several share a byte, it gets the bytes, one after the other. Without `decode` the numbers
    are the weight. `encoding` takes the result of `prepared` and writes rows in the same format; without it the weight
    is read-only. Codecs use tensor methods only, so that they import without torch.
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
        """All tensors next to codes that it knows, by their names in the module."""
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
        """Return the number of blocks down and across a matrix."""
        return -(-rows // self.rows), -(-columns // self.columns)

    def beside(self, rows: Any) -> Iterator[tuple[Any, slice]]:
        """Yield views (count, blocks, columns of one) of some rows, each with its slice of the blocks across."""
        whole = rows.shape[1] // self.columns
        if whole:
            yield rows[:, : whole * self.columns].unflatten(1, (whole, self.columns)), slice(0, whole)
        if whole * self.columns < rows.shape[1]:
            yield rows[:, whole * self.columns :].unsqueeze(1), slice(whole, None)

    def below(self, first: int, count: int) -> list[slice]:
        """Return a slice of the `count` rows from row `first` on for each row of blocks that they are in."""
        cuts = range(first - first % self.rows, first + count, self.rows)
        return [slice(max(start - first, 0), min(start + self.rows - first, count)) for start in cuts]

    def each(self, scale: Any, first: int, count: int) -> Any:
        """Return the scales of `count` rows, (count or 1, blocks), from the scales of their rows of blocks."""
        if self.rows == 1 or scale.shape[0] == 1:
            return scale
        return scale.repeat_interleave(self.rows, 0)[first % self.rows :][:count]


def own_scales(scale: Any, blocks: Blocks, first: int, count: int) -> Any:
    """Return the scales of a weight for the blocks of `count` rows from `first` on."""
    return scale[first // blocks.rows : -(-(first + count) // blocks.rows)]


def multiply(rows: Any, scale: Any, blocks: Blocks, first: int) -> None:
    """Compute q · scale of some rows of q, in place, with the scales of their own blocks."""
    each = blocks.each(scale, first, rows.shape[0]).unsqueeze(-1)
    for part, at in blocks.beside(rows):
        part.mul_(each[:, at])


def divide(rows: Any, scale: Any, blocks: Blocks, first: int) -> None:
    """Compute W / scale of some rows of W, in place, with the scales of their own blocks."""
    each = blocks.each(scale, first, rows.shape[0]).unsqueeze(-1)
    for part, at in blocks.beside(rows):
        part.div_(each[:, at])


def extremes(rows: Any, blocks: Blocks, first: int) -> tuple[Any, Any]:
    """Return the largest and the smallest number of some rows in each of their blocks, (rows of blocks, blocks)."""
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
