"""NVFP4 in ComfyUI's form: E2M1, an E4M3 scale for each block of 16 inputs, and one scale of the whole weight.

The first of two codes is in the upper bits of a byte. Other programs have it in the lower bits and the scales of blocks
row by row, under the same names.
"""

from collections.abc import Mapping
from math import isfinite, prod
from typing import Any

from lora_inspect.codecs.four_bits import E2M1, padded, scales_of_rows, unpacked
from lora_inspect.codecs.record import BadSetting, Codec, CodedTensor, CodeLayout, NotRead
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS, decode_number

BLOCK = 16
FORMAT = "nvfp4"
OF_BLOCKS, OF_ALL = "weight_scale", "weight_scale_2"


class Scales(NamedTuple):
    """The scales of all blocks as they are stored, and that of all of these."""

    tiles: Any
    scale: Any


def decoded(packed: Any, scales: Scales, first: int = 0) -> Any:
    """Return rows of the weight (n, in), from row `first` on, in the element type of the scale of all blocks.

    `packed` are the bytes (n, in/2) of those rows. W = code · (scale · scale of the block), each product rounded to the
    element type, as in comfy-kitchen.
    """
    rows, inputs = packed.shape[0], 2 * packed.shape[1]
    scale = scales.scale
    numbers = unpacked(packed, scale.new_tensor(E2M1), high_first=True).view(rows, -1, BLOCK)
    of_blocks = scales_of_rows(scales.tiles, first, first + rows, inputs // BLOCK).to(scale.dtype)
    return numbers.mul_((scale * of_blocks).unsqueeze(-1)).view(rows, inputs)


def _layout(found: CodedTensor) -> CodeLayout | None:
    if found.said.get("format") != FORMAT:
        raise NotRead(f"nothing gives {FORMAT}, and so the order of {OF_BLOCKS}")
    shape, scale = found.codes.shape, found.beside[OF_BLOCKS].shape
    if len(shape) != 2 or 2 * shape[1] % BLOCK or prod(found.beside[OF_ALL].shape) != 1:
        return None
    rows, inputs = shape[0], 2 * shape[1]
    fits = prod(scale) == prod(padded(rows, inputs // BLOCK))
    return CodeLayout((rows, inputs), found.beside[OF_BLOCKS].dtype) if fits else None


def _prepared(tensors: Mapping[str, Any], layout: CodeLayout) -> Scales:
    tiles, scale = tensors[OF_BLOCKS], tensors[OF_ALL].float().reshape(())
    if not isfinite(scale.item()):
        raise BadSetting(OF_ALL, "has a number that is not finite and so cannot scale")
    if layout.detail == "U8":  # the same numbers, in files of before safetensors had their type
        tiles = scale.new_tensor([decode_number("F8_E4M3", bytes([code])) for code in range(256)])[tiles.long()]
    return Scales(tiles, scale)


def _decode(codes: Any, scales: Scales, first: int, into: Any) -> None:
    into.copy_(decoded(codes.view(into.shape[0], -1), scales, first))


CODEC = Codec(
    name="nvfp4",
    title="nvfp4",
    stored=frozenset({"U8"}),
    settings={OF_BLOCKS: frozenset({"F8_E4M3", "U8"}), OF_ALL: PLAIN_FLOATS},
    formats={FORMAT: "U8"},
    layout=_layout,
    prepared=_prepared,
    decode=_decode,
)
