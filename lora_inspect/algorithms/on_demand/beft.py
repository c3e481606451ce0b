"""BEFT: b' = b + `beft_bias`, a vector that is added to the output of a layer, as a bias is.

PEFT has no multipliers for it. A layer without a bias gets none, since no weight can replace the bias. Sources: Huang
et al. 2025; the `BeftLayer` of PEFT.
"""

from typing import TYPE_CHECKING

from lora_inspect.algorithms.record import BIAS, Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the vector (1, out), or None."""
    added = shapes["added"]
    return (
        None if len(added) == 2 and added[0] == 1 and added[1] else f"beft_bias {list(added)} is not a vector (1, out)"
    )


def shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out,), the shape of the layer's bias."""
    return shapes["added"][1:]


def misfit(shapes: Shapes, bias: tuple[int, ...]) -> str | None:
    """Return the mismatch with a bias of this shape, or None."""
    return None if shape(shapes) == bias else f"changes a bias of {shapes['added'][1]} numbers"


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the vector as a matrix of one column."""
    from lora_inspect.maths.change import added

    return added(tensors["added"].reshape(-1, 1), scale)


ALGORITHM = Algorithm(
    name="beft",
    title="BEFT",
    equation="b + beft_bias",
    writers="PEFT",
    dialects={"peft": {"added": ".beft_bias"}},
    marks=("added",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    parameter=BIAS,
    blends=False,
    has_alpha=False,
    peft_type="BEFT",
)
