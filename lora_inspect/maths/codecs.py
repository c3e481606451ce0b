"""What the numbers that a weight is stored as stand for: plain floats, fp8 codes, fp8 codes with a scale.

Tensor methods alone, so that it imports without torch and serves merge and the networks. A weight is (out, *rest) here,
and its columns are all of the rest. Sources of the shapes: musubi-tuner's `fp8_optimization_utils` for `scale_weight`,
ComfyUI's `convert_old_quants` and `quant_ops` and the loader of Ideogram 4 for `weight_scale`.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from lora_inspect.files.dtypes import FP8, PLAIN_FLOATS
from lora_inspect.records import NamedTuple

Shape = tuple[int, ...]


class Codec(NamedTuple):
    """A way to store weights.

    `stored` are the element types of the codes, `scale` is the name, in the module of a weight, of the tensor that they
    are multiplied by. `scale_shape` has the shapes of the weight and of that tensor, and gives the one that `decoded`
    takes, or None where it fits no weight of that shape.
    """

    title: str
    stored: frozenset[str]
    scale: str | None = None
    scale_shape: Callable[[Shape, Shape], Shape | None] = lambda weight, scale: None


def _number_rows_or_blocks(weight: Shape, scale: Shape) -> Shape | None:
    """A number, (out, 1), or (out, blocks, 1) for blocks of neighbouring columns."""
    if prod(scale) == 1:
        return ()
    if len(scale) not in (2, 3) or scale[:1] != weight[:1] or scale[-1] != 1:
        return None
    blocks = prod(scale[1:])
    return scale if blocks and prod(weight[1:]) % blocks == 0 else None


def _number_or_rows(weight: Shape, scale: Shape) -> Shape | None:
    """A number, (out, 1) or (out,), which is one for each row as well."""
    if prod(scale) == 1:
        return ()
    rows = weight[:1]
    return (*rows, 1) if rows and scale in (rows, (*rows, 1)) else None


PLAIN = Codec("plain floats", PLAIN_FLOATS)
PLAIN_FP8 = Codec("fp8", FP8)
SCALE_WEIGHT = Codec("scaled fp8", FP8, "scale_weight", _number_rows_or_blocks)
WEIGHT_SCALE = Codec("scaled fp8", FP8, "weight_scale", _number_or_rows)
SCALED = (SCALE_WEIGHT, WEIGHT_SCALE)

# In the module of a weight: JSON whose `format` names its codec.
FORMAT = "comfy_quant"
# What that JSON calls scaled fp8, and the element type that its codes have.
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
# What in the module of a weight says how its codes are read.
SETTINGS = (*(codec.scale for codec in SCALED if codec.scale), FORMAT)
# In the metadata of a file: the same JSON for many modules.
FORMATS_KEY = "_quantization_metadata"
# The last name of a tensor that says of all weights below its own place that they have a `scale_weight`.
MARKER = "scaled_fp8"


def decoded(values: Any, scale: Any) -> Any:
    """The weight (out, *rest) from the `values` of its codes and a scale: (), (out, 1) or (out, blocks, 1).

    W = q · scale, in the element type of both. Any rows of a weight are decoded by the same rows of its scale.
    """
    if not scale.dim():
        return values * scale
    return (values.reshape(*scale.shape[:-1], -1) * scale).reshape(values.shape)
