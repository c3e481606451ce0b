"""Eight-bit integers with `weight_scale`: ComfyUI's `int8_tensorwise`, one scale for the weight or each row."""

from lora_inspect.codecs import scaled
from lora_inspect.codecs.record import Blocks, Codec, CodedTensor, CodeLayout, NotRead, Shape
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS

NAME = "weight_scale"
# What says that the inputs are rotated, which a change of the weight is not.
_ROTATED = "convrot"


def blocks_of(weight: Shape, scale: Shape) -> Blocks | None:
    """Return the blocks of a scale that is a number or (out, 1); None for any other shape."""
    return scaled.number(weight, scale) or scaled.rows(weight, scale)


def _layout(found: CodedTensor) -> CodeLayout | None:
    more = found.said.get("params")
    if found.said.get(_ROTATED) or (isinstance(more, dict) and more.get(_ROTATED)):
        raise NotRead(f"its inputs are rotated, {_ROTATED}")
    return scaled.laid_out(found, NAME, blocks_of(found.codes.shape, found.beside[NAME].shape))


CODEC = Codec(
    name="int8",
    title="int8",
    stored=frozenset({"I8"}),
    settings={NAME: PLAIN_FLOATS},
    formats={"int8_tensorwise": "I8"},
    layout=_layout,
    prepared=scaled.prepared,
    decode=scaled.decode,
    encoding=scaled.ScaledEncoding,
)
