"""Makes the weights of a base from their codes, a block of rows at a time."""

from typing import TYPE_CHECKING, Any

from lora_inspect.codecs.record import BadSetting
from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.base.base_codecs import CodedWeight

if TYPE_CHECKING:
    from lora_inspect.maths.tensors import Decode


def decoder(weight: CodedWeight) -> "Decode":
    """Makes blocks of the weight from the values of its codes; raises LoraInspectError where they are no numbers."""
    from numpy import errstate

    from lora_inspect.maths.tensors import Decode

    codec, state = weight.codec, prepared(weight)

    def decode(codes: Any, first: int, into: Any) -> None:
        if codec.decode:
            # What is no number is named below.
            with errstate(all="ignore"):
                codec.decode(codes, state, first, into)
        if into.sum().isnan() and into.isnan().any():
            row = first + int(into.isnan().any(1).nonzero()[0])
            raise LoraInspectError(
                f"{weight.info.file}: {weight.info.name} holds codes in row {row} that stand for no number (NaN); "
                "fetch the base again."
            )

    return Decode(decode, weight.layout.unit, weight.layout.part)


def prepared(weight: CodedWeight) -> Any:
    """What the codec needs for every block of rows; raises LoraInspectError where what stands beside is no number."""
    from lora_inspect.maths.tensors import load_as_it_is

    try:
        tensors = {name: load_as_it_is(info) for name, info in weight.beside.items()}
        return weight.codec.prepared(tensors, weight.layout)
    except BadSetting as bad:
        info = weight.beside[bad.name]
        raise LoraInspectError(
            f"{info.file}: {info.name} {bad.what} {weight.info.name}; fetch the base again."
        ) from None
