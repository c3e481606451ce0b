"""fp8 with `weight_scale`: ComfyUI's `quant_ops`, and the loader of Ideogram 4, which has one for each row."""

from lora_inspect.codecs import scaled
from lora_inspect.codecs.record import Blocks, Codec, CodedTensor, CodeLayout, Shape
from lora_inspect.files.safetensors.dtypes import FP8, PLAIN_FLOATS

NAME = "weight_scale"


def blocks_of(weight: Shape, scale: Shape) -> Blocks | None:
    """A number, (out, 1) or (out,), which is one for each row as well; None for what fits no such weight."""
    flat = (*scale, 1) if len(scale) == 1 else scale
    return scaled.number(weight, scale) or scaled.rows(weight, flat)


def _layout(found: CodedTensor) -> CodeLayout | None:
    return scaled.laid_out(found, NAME, blocks_of(found.codes.shape, found.beside[NAME].shape))


CODEC = Codec(
    name="weight_scale",
    title="scaled fp8",
    stored=FP8,
    settings={NAME: PLAIN_FLOATS},
    formats={"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
    layout=_layout,
    prepared=scaled.prepared,
    decode=scaled.decode,
    encoding=scaled.ScaledEncoding,
)
