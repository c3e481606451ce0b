"""Codes that are numbers, multiplied by a scale: W = q · scale, with one scale for each block.

Encoding keeps the scale of a block if all its numbers have a nearest code under it, so that unchanged rows keep their
codes. Otherwise the block gets the smallest scale in the type of the stored ones under which no number is beyond the
largest code.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf, prod
from types import MappingProxyType
from typing import Any

from lora_inspect.codecs.record import (
    BadSetting,
    Blocks,
    Codec,
    CodedTensor,
    CodeLayout,
    Extremes,
    NoCode,
    Shape,
    divide,
    extremes,
    multiply,
    own_scales,
)
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import FP8, PLAIN_FLOATS

# The blocks of a weight of one shape that a scale of another one is for; None where it fits no such weight.
BlocksOf = Callable[[Shape, Shape], Blocks | None]
# The names that ComfyUI has for fp8, with the element type of the codes.
FP8_FORMATS = MappingProxyType({"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"})


class Reach(NamedTuple):
    """The range of an element type's codes: from -`largest` to `largest`.

    Numbers above `least` and below `most` round to a code in this range; others would round to a code that the type
    does not have.
    """

    largest: float
    least: float
    most: float


# E4M3 has no 480 and E5M2 no 65536, which lie half a step beyond `most`; eight bits have a -128, which no scale is for.
REACH = {
    "F8_E4M3": Reach(448.0, -464.0, 464.0),
    "F8_E5M2": Reach(57344.0, -61440.0, 61440.0),
    "I8": Reach(127.0, -128.5, 127.5),
}


class BlockScaling(NamedTuple):
    """The scaling of a weight: the name of its scale in the module, its blocks, and the element type of the codes."""

    name: str
    blocks: Blocks
    stored: str


class Scale(NamedTuple):
    """The scale of a weight, (rows, columns) of blocks: as it is `stored`, in a `shape` there, and in float32."""

    stored: Any
    shape: Shape
    values: Any
    scaling: BlockScaling


def number(weight: Shape, scale: Shape) -> Blocks | None:
    """Return one block for the whole weight if the scale is one number; None otherwise."""
    size = max(prod(weight), 1)
    return Blocks(size, size) if weight and prod(scale) == 1 else None


def rows(weight: Shape, scale: Shape) -> Blocks | None:
    """Return blocks of one row each if the scale is (out, 1); None otherwise."""
    return Blocks(1, max(prod(weight[1:]), 1)) if weight and scale == (weight[0], 1) else None


def laid_out(found: CodedTensor, name: str, blocks: Blocks | None) -> CodeLayout | None:
    """Return the layout of codes that are in the same places as the entries of the weight; None without blocks."""
    if blocks is None:
        return None
    shape = found.codes.shape
    together = blocks.rows if blocks.rows < shape[0] else 0
    return CodeLayout(shape, BlockScaling(name, blocks, found.codes.dtype), together)


def prepared(tensors: Mapping[str, Any], layout: CodeLayout) -> Scale:
    """Return the scale of a weight. Raises BadSetting if a code times the scale is not finite."""
    scaling: BlockScaling = layout.detail
    stored, columns = tensors[scaling.name], prod(layout.shape[1:])
    grid = scaling.blocks.grid(layout.shape[0], columns) if layout.shape[0] and columns else (stored.numel(), 1)
    values = stored.float().reshape(grid)
    if not (values * REACH[scaling.stored].largest).isfinite().all():
        raise BadSetting(scaling.name, "has a number that is not finite or is too large to scale")
    return Scale(stored.reshape(grid), tuple(stored.shape), values, scaling)


def decode(codes: Any, scale: Scale, first: int, into: Any) -> None:
    """Compute W = q · scale, in the memory of the codes."""
    blocks = scale.scaling.blocks
    multiply(into, own_scales(scale.values, blocks, first, into.shape[0]), blocks, first)


class ScaledEncoding:
    """An Encoding of `record.py` that settles the scales of blocks."""

    def __init__(self, scale: Scale) -> None:
        self._scale, self._blocks = scale, scale.scaling.blocks
        self._reach = REACH[scale.scaling.stored]
        self._is_shared = scale.values.shape[0] == 1

    def extremes(self, rows: Any, first: int) -> Extremes:
        """Return the largest and the smallest number in each block of the rows."""
        return Extremes(*extremes(rows, self._blocks, first))

    def settled(self, seen: Extremes, first: int) -> Any:
        """Return the scales of the blocks, as they are stored: the base's where the numbers fit, else new ones."""
        start = first // self._blocks.rows
        own = slice(start, start + seen.largest.shape[0])
        stored, size = self._scale.stored[own], self._scale.values[own].abs()
        fit = (seen.largest < size * self._reach.most) & (seen.smallest > size * self._reach.least)
        if fit.all():
            return stored
        return stored.where(fit, self._fresh(seen, stored))

    def numbers(self, rows: Any, scales: Any, first: int) -> None:
        """Compute W / scale of the rows, in place."""
        values = scales.float()
        divide(rows, values.masked_fill(values == 0, 1.0), self._blocks, first)

    def weight(self, numbers: Any, scales: Any, first: int) -> None:
        """Compute W = q · scale, in place."""
        multiply(numbers, scales.float(), self._blocks, first)

    def settings(self, scales: Sequence[Any]) -> dict[str, Any]:
        """Return the tensor of all scales, in the base's form, by its name in the module."""
        tensor, at = self._scale.stored.clone(), 0
        for own in scales:
            tensor[at : at + own.shape[0]] = own
            at += 0 if self._is_shared else own.shape[0]
        return {self._scale.scaling.name: tensor.reshape(self._scale.shape)}

    def _fresh(self, seen: Extremes, stored: Any) -> Any:
        """Return the smallest scales of the stored type under which no number is beyond the largest code."""
        peak = seen.largest.maximum(-seen.smallest)
        fresh = (peak / self._reach.largest).to(stored)
        beyond = peak / fresh.float() > self._reach.largest
        fresh = fresh.nextafter(fresh.new_full((), inf)).where(beyond, fresh)
        lost = ~(fresh.float() * self._reach.largest).isfinite()
        if lost.any():
            raise NoCode(peak[lost][0].item())
        return fresh


def fp8_codec(name: str, title: str, blocks_of: BlocksOf, formats: Mapping[str, str] = MappingProxyType({})) -> Codec:
    """Return the codec of fp8 with the scale tensor `name` next to the weight.

    `blocks_of` returns the scale's blocks.
    """

    def layout(found: CodedTensor) -> CodeLayout | None:
        return laid_out(found, name, blocks_of(found.codes.shape, found.beside[name].shape))

    return Codec(
        name=name,
        title=title,
        stored=FP8,
        settings={name: PLAIN_FLOATS},
        formats=formats,
        layout=layout,
        prepared=prepared,
        decode=decode,
        encoding=ScaledEncoding,
    )
