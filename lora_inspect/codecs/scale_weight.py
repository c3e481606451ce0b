"""fp8 with `scale_weight`: musubi-tuner's `fp8_optimization_utils`, and ComfyUI's first form, which has one number."""

from math import prod

from lora_inspect.codecs import scaled
from lora_inspect.codecs.record import Blocks, Codec, CodedTensor, CodeLayout, Shape
from lora_inspect.files.safetensors.dtypes import FP8, PLAIN_FLOATS

NAME = "scale_weight"


def blocks_of(weight: Shape, scale: Shape) -> Blocks | None:
    """A number, (out, 1), or (out, blocks, 1) for blocks of neighbouring columns; None for what fits no such weight."""
    if blocks := scaled.number(weight, scale) or scaled.rows(weight, scale):
        return blocks
    if len(scale) != 3 or not weight or (scale[0], scale[2]) != (weight[0], 1):
        return None
    columns, beside = prod(weight[1:]), scale[1]
    return Blocks(1, columns // beside) if beside and columns and columns % beside == 0 else None


def _layout(found: CodedTensor) -> CodeLayout | None:
    return scaled.laid_out(found, NAME, blocks_of(found.codes.shape, found.beside[NAME].shape))


CODEC = Codec(
    name="scale_weight",
    title="scaled fp8",
    stored=FP8,
    settings={NAME: PLAIN_FLOATS},
    formats={"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
    layout=_layout,
    prepared=scaled.prepared,
    decode=scaled.decode,
    encoding=scaled.ScaledEncoding,
)
