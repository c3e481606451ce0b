"""fp8 with `weight_scale_inv`, whose name says what divided the weight: DeepSeek's form, as transformers has it.

One number for each block of 128 rows and 128 columns, or one for all; those of blocks at the edges are whole.
"""

from lora_inspect.codecs import scaled
from lora_inspect.codecs.record import Blocks, Codec, CodedTensor, CodeLayout, Shape
from lora_inspect.files.safetensors.dtypes import FP8, PLAIN_FLOATS

NAME = "weight_scale_inv"
BLOCKS = Blocks(128, 128)


def blocks_of(weight: Shape, scale: Shape) -> Blocks | None:
    """(out/128, in/128), rounded up, or a number; None for what fits no such weight."""
    if len(weight) == 2 and all(weight) and scale == BLOCKS.grid(*weight):
        return BLOCKS
    return scaled.number(weight, scale)


def _layout(found: CodedTensor) -> CodeLayout | None:
    return scaled.laid_out(found, NAME, blocks_of(found.codes.shape, found.beside[NAME].shape))


CODEC = Codec(
    name="weight_scale_inv",
    title="block fp8",
    stored=FP8,
    settings={NAME: PLAIN_FLOATS},
    layout=_layout,
    prepared=scaled.prepared,
    decode=scaled.decode,
    encoding=scaled.ScaledEncoding,
)
