"""Codes that are numbers, multiplied by a scale: W = q · scale, of each entry with the scale of its block."""

from collections.abc import Mapping
from math import isfinite, prod
from typing import Any

from lora_inspect.codecs.blocks import Blocks, multiply
from lora_inspect.codecs.record import BadSetting, Found, Layout, Shape
from lora_inspect.records import NamedTuple

# The largest number that a code of each element type stands for.
LARGEST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}


class Scaling(NamedTuple):
    """How a weight is scaled: by which tensor in its module, by blocks of which size, and what its codes are."""

    name: str
    blocks: Blocks
    stored: str


class Scale(NamedTuple):
    """The scale of a weight: `values` are (rows, columns) of blocks."""

    values: Any
    blocks: Blocks


def number(weight: Shape, scale: Shape) -> Blocks | None:
    """One number for the whole weight."""
    return Blocks(max(weight[0], 1), max(prod(weight[1:]), 1)) if weight and prod(scale) == 1 else None


def rows(weight: Shape, scale: Shape) -> Blocks | None:
    """(out, 1): one number for each row."""
    return Blocks(1, max(prod(weight[1:]), 1)) if weight and scale == (weight[0], 1) else None


def laid_out(found: Found, name: str, blocks: Blocks | None) -> Layout | None:
    """The layout of codes whose entries stand where those of the weight do, None without blocks."""
    return blocks and Layout(found.codes.shape, Scaling(name, blocks, found.codes.dtype))


def prepared(tensors: Mapping[str, Any], layout: Layout) -> Scale:
    """The scale in float32; raises BadSetting where a code times that is no number."""
    scaling: Scaling = layout.detail
    stored = tensors[scaling.name]
    columns = prod(layout.shape[1:])
    values = stored.float()
    if layout.shape[0] and columns:
        values = values.reshape(scaling.blocks.grid(layout.shape[0], columns))
    if values.numel() and not isfinite((values.abs().max() * LARGEST[scaling.stored]).item()):
        raise BadSetting(scaling.name, "holds a number that is not finite or too large to scale")
    return Scale(values, scaling.blocks)


def decode(codes: Any, scale: Scale, first: int, into: Any) -> None:
    """W = q · scale, in the memory of the codes."""
    multiply(into, scale.values, scale.blocks, first)
