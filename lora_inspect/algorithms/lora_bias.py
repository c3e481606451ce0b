"""The bias of LoRA's up layer: PEFT's `lora_bias`, and ai-toolkit's files.

The up layer computes up @ (down @ x) + bias, and the LoRA's scale multiplies all of it: b' = b + scale · bias. Source:
`Linear.merge` of PEFT's LoRA.
"""

from typing import TYPE_CHECKING

from lora_inspect.algorithms.record import BIAS, Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the bias (out,), or None."""
    return None if len(shapes["bias"]) == 1 and shapes["bias"][0] else f"bias {list(shapes['bias'])} is not a vector"


def shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out,), the shape of the layer's bias."""
    return shapes["bias"]


def misfit(shapes: Shapes, bias: tuple[int, ...]) -> str | None:
    """Return the mismatch with a bias of this shape, or None."""
    return None if shapes["bias"] == bias else f"changes a bias of {shapes['bias'][0]} numbers"


def rank(shapes: Shapes) -> None:
    """Return None: the bias has no rank of its own and takes the scale of its LoRA."""
    return None


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return scale · bias, as a matrix of one column."""
    from lora_inspect.maths.change import added

    return added(tensors["bias"].reshape(-1, 1), scale)


ALGORITHM = Algorithm(
    name="lora_bias",
    title="a bias on LoRA's up layer",
    equation="b + m · s · bias",
    writers="PEFT (lora_bias), ai-toolkit",
    dialects={"kohya": {"bias": ".lora_up.bias"}, "peft": {"bias": ".lora_B.bias"}},
    marks=("bias",),
    formula=Formula(check, shape, misfit, rank, change, thin=lambda shapes: None),
    parameter=BIAS,
    beside="lora",
    peft_type="LORA",
    scaled=("bias",),
    rows={"bias": None},
)
