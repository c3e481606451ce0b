"""fp8 with `weight_scale`: ComfyUI's `quant_ops`, and the loader of Ideogram 4, which has one for each row."""

from lora_inspect.codecs import scaled
from lora_inspect.codecs.record import Blocks, Shape


def blocks_of(weight: Shape, scale: Shape) -> Blocks | None:
    """A number, (out, 1) or (out,), which is one for each row as well; None for what fits no such weight."""
    flat = (*scale, 1) if len(scale) == 1 else scale
    return scaled.number(weight, scale) or scaled.rows(weight, flat)


CODEC = scaled.fp8_codec("weight_scale", "scaled fp8", blocks_of, scaled.FP8_FORMATS)
