"""fp8 with `weight_scale_inv`, named after the divisor of the weight: DeepSeek's form, as in transformers.

One number for each block of 128 rows and 128 columns, or one for all. Smaller blocks at the edges have their own
number.
"""

from lora_inspect.codecs import scaled
from lora_inspect.codecs.record import Blocks, Shape

BLOCKS = Blocks(128, 128)


def blocks_of(weight: Shape, scale: Shape) -> Blocks | None:
    """Return the blocks of a scale that is (out/128, in/128), rounded up, or a number; None for any other shape."""
    if len(weight) == 2 and all(weight) and scale == BLOCKS.grid(*weight):
        return BLOCKS
    return scaled.number(weight, scale)


CODEC = scaled.fp8_codec("weight_scale_inv", "block fp8", blocks_of)
