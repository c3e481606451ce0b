"""What a changed weight is folded in, so that the arithmetic stays far below the rounding of what is written."""

from collections.abc import Iterable, Mapping

from lora_inspect.files.safetensors.dtypes import BITS

SINGLE, DOUBLE = "F32", "F64"
_MOST_BITS_OF_SINGLE = 16


def working_type(read: str, written: str) -> str:
    """What a weight of the element type `read` is folded in, to be `written` in the same type or another one.

    In float32 a sum is off by more than its own last rounding where its terms are larger than it is, so float32 itself
    is folded in float64.
    """
    return DOUBLE if read == DOUBLE or BITS[written] > _MOST_BITS_OF_SINGLE else SINGLE


def working_types(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By the element type that they are written in, the coarsest one that weights are folded in.

    `pairs` are (read, written), as `working_type` takes them.
    """
    found: dict[str, str] = {}
    for read, written in sorted(set(pairs)):
        found[written] = SINGLE if found.get(written) == SINGLE else working_type(read, written)
    return dict(sorted(found.items()))


def recorded_type(written: str, recorded: Mapping[str, str]) -> str:
    """What a weight that is `written` in a type was folded in, at the coarsest, by what a merge `recorded`."""
    return recorded.get(written, DOUBLE if written == DOUBLE else SINGLE)
