"""Makes the weights of a base from their codes, a block of rows at a time."""

from typing import TYPE_CHECKING, Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.maths import codecs
from lora_inspect.reading.coded_weights import CodedWeight

if TYPE_CHECKING:
    from lora_inspect.maths.tensor_reader import Decode

# The largest number that each kind of code stands for.
_LARGEST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}


def decoder(weight: CodedWeight) -> "Decode":
    """Makes blocks of the weight from the values of its codes; raises LoraInspectError where they are no numbers."""
    scale = _scale(weight)

    def decode(block: Any, first: int) -> None:
        if block.sum().isnan() and block.isnan().any():
            row = first + int(block.isnan().any(1).nonzero()[0])
            raise LoraInspectError(
                f"{weight.info.file}: {weight.info.name} holds codes in row {row} that stand for no number (NaN); "
                "fetch the base again."
            )
        if scale is not None:
            rows = scale[first : first + block.shape[0]] if scale.dim() else scale
            block.copy_(codecs.decoded(block, rows))

    return decode


def _scale(weight: CodedWeight) -> Any:
    """The scale in the working type and in the shape that it is taken in, or None where there is none."""
    from lora_inspect.maths.tensor_reader import load, working_dtype

    if weight.scale is None:
        return None
    scale = load(weight.scale).to(working_dtype(weight.info)).reshape(weight.scale_shape)
    if not (scale * _LARGEST[weight.info.dtype]).isfinite().all():
        raise LoraInspectError(
            f"{weight.scale.file}: {weight.scale.name} holds a number that is not finite or too large to scale "
            f"{weight.info.name}; fetch the base again."
        )
    return scale
