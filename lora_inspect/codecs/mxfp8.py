"""MXFP8 as ComfyUI has it: E4M3 codes, and a power of two a block of 32 inputs.

The exponent 0 is that of a block of zeros, which comfy-kitchen takes for the scale 0.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from lora_inspect.codecs.four_bits import padded, powers, scales_of_rows
from lora_inspect.codecs.record import Codec, CodedTensor, CodeLayout, NotRead

BLOCK = 32
FORMAT = "mxfp8"
NAME = "weight_scale"


def decode(values: Any, tiles: Any, first: int, into: Any) -> None:
    """Decode rows of the weight in place, in the memory of their codes: W = q · 2 ** (e - 127).

    `values` are the codes as numbers and `first` is the number of their first row. `tiles` are the exponents of all
    blocks of the weight as they are stored, as bytes.
    """
    rows, inputs = values.shape
    exponents = scales_of_rows(tiles, first, first + rows, inputs // BLOCK)
    scales = powers(exponents, values).masked_fill_(exponents == 0, 0.0)
    into.view(rows, -1, BLOCK).mul_(scales.unsqueeze(-1))


def _layout(found: CodedTensor) -> CodeLayout | None:
    if found.said.get("format") != FORMAT:
        raise NotRead(f"nothing gives {FORMAT}, and so the order of {NAME}")
    shape, scale = found.codes.shape, found.beside[NAME].shape
    if len(shape) != 2 or shape[1] % BLOCK or prod(scale) != prod(padded(shape[0], shape[1] // BLOCK)):
        return None
    return CodeLayout(shape)


def _prepared(tensors: Mapping[str, Any], layout: CodeLayout) -> Any:
    return tensors[NAME]


CODEC = Codec(
    name="mxfp8",
    title="mxfp8",
    stored=frozenset({"F8_E4M3"}),
    settings={NAME: frozenset({"U8", "F8_E8M0"})},
    formats={FORMAT: "F8_E4M3"},
    layout=_layout,
    prepared=_prepared,
    decode=decode,
)
