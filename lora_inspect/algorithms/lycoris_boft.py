"""BOFT of LyCORIS: stages of rotations of blocks of rows, one after the other.

The stored blocks X (stages, count, size, size) make Q = X - Xᵀ and R = (I + Q)(I - Q)^-1. Stage i takes the rows of
each group of 2ⁱ blocks from its two halves in turn, multiplies each block by m · (R - I) + I and puts the rows back;
`rescale` multiplies the result. The alpha is no scale: alpha · out is the largest norm that all Q together may have,
and 0 is for no limit. Source: the `ButterflyOFTModule` of lycoris-lora.
"""

from typing import TYPE_CHECKING

from lora_inspect.algorithms import oft
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def is_butterfly(shapes: Shapes) -> bool:
    """Return True if the blocks have stages, which those of OFT do not have."""
    return len(shapes.get("blocks", ())) == 4


def check(shapes: Shapes) -> str | None:
    """Return the problem with blocks (stages, count, size, size) and rescale (count · size, 1, …), or None."""
    stages, count, size, other = shapes["blocks"]
    if wrong := oft.check({**shapes, "blocks": (count, size, other)}):
        return wrong
    if stages < 1 or size % 2 or stages > count.bit_length() or count % (1 << (stages - 1)):
        return f"oft_blocks {list(shapes['blocks'])} are not {stages} stages of blocks"
    return None


def _rows(shapes: Shapes) -> int:
    return shapes["blocks"][1] * shapes["blocks"][2]


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, None): the columns are unknown."""
    return _rows(shapes), None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return None if len(weight) > 1 and weight[0] == _rows(shapes) else f"rotates {_rows(shapes)} rows"


def together(shapes: Shapes) -> int:
    """Return the number of rows of a group of the last stage."""
    return shapes["blocks"][2] << (shapes["blocks"][0] - 1)


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the stages of rotations of rows."""
    from lora_inspect.maths.entries import ROWS
    from lora_inspect.maths.rotation import Butterfly, alternating, cayley

    gain = tensors.get("rescale")
    blocks = cayley(oft.skew(tensors["blocks"], alpha))
    return Butterfly(blocks, alternating, ROWS, None if gain is None else gain.reshape(-1, 1))


ALGORITHM = Algorithm(
    name="lycoris_boft",
    title="BOFT of LyCORIS",
    equation="rescale · Bₘ … B₁ · W, each stage with m · (R - I) + I",
    writers="LyCORIS",
    dialects=oft.ALGORITHM.dialects,
    marks=("blocks",),
    common=("rescale",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change, together=together),
    multiplies=True,
    settings=oft.settings,
    fits=is_butterfly,
)
