"""fp8 with `weight_scale`: ComfyUI's `quant_ops`, and the loader of Ideogram 4, which has one for each row."""

from lora_inspect.codecs import scaled
from lora_inspect.codecs.record import Blocks, Shape


def blocks_of(weight: Shape, scale: Shape) -> Blocks | None:
    """Return the blocks of a scale that is a number, (out, 1) or (out,); None for any other shape.

    (out,) has one number for each row, like (out, 1).
    """
    flat = (*scale, 1) if len(scale) == 1 else scale
    return scaled.number(weight, scale) or scaled.rows(weight, flat)


CODEC = scaled.fp8_codec("weight_scale", "scaled fp8", blocks_of, scaled.FP8_FORMATS)
