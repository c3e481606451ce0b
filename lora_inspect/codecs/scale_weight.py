"""fp8 with `scale_weight`: musubi-tuner's `fp8_optimization_utils`, and ComfyUI's first form with one number."""

from math import prod

from lora_inspect.codecs import scaled
from lora_inspect.codecs.record import Blocks, Shape


def blocks_of(weight: Shape, scale: Shape) -> Blocks | None:
    """Return the blocks of a scale that is a number, (out, 1) or (out, blocks, 1); None for any other shape.

    (out, blocks, 1) has blocks of neighbouring columns.
    """
    if blocks := scaled.number(weight, scale) or scaled.rows(weight, scale):
        return blocks
    if len(scale) != 3 or not weight or (scale[0], scale[2]) != (weight[0], 1):
        return None
    columns, beside = prod(weight[1:]), scale[1]
    return Blocks(1, columns // beside) if beside and columns and columns % beside == 0 else None


CODEC = scaled.fp8_codec("scale_weight", "scaled fp8", blocks_of, scaled.FP8_FORMATS)
