"""DeLoRA of PEFT: a product of vector pairs that have length 1 and share one strength λ.

W' = W + B · diag(λ / (r · ‖aᵢ‖ · ‖bᵢ‖)) · A · diag(n), with the rows a of A and the columns b of B; a length below 1e-4
counts as 1e-4. The strength λ (`delora_lambda`) is trained, and n (`delora_w_norm`) are the lengths of the base's
columns, which PEFT saves next to it. Its forward and its merge are the same, and it has no multipliers. Sources: Bini
et al. 2025, and the `DeloraLayer` of PEFT 0.21.
"""

from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# Shorter vectors are not made as long as 1.
_LEAST = 1e-4


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of A (r, in), B (out, r), λ (1,) and the norms (in,), or None."""
    down, up, strength, norms = (shapes[role] for role in ("down", "up", "strength", "norms"))
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in down or 0 in up:
        return f"delora_A {list(down)} and delora_B {list(up)} cannot be multiplied"
    if strength != (1,) or norms != down[1:]:
        return (
            f"delora_lambda {list(strength)} is not one number, or delora_w_norm {list(norms)} is not one for each "
            "input"
        )
    return None


def shape(shapes: Shapes) -> tuple[int, int]:
    """Return (out, in) of the weight."""
    return shapes["up"][0], shapes["down"][1]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than(shape(shapes), weight)


def matrices(tensors: Tensors) -> tuple[Any, Any]:
    """Return (up, down), with the change as their product: strength and lengths go into up, norms into down."""
    down, up = tensors["down"], tensors["up"]
    lengths = down.norm(dim=1).clamp(min=_LEAST) * up.norm(dim=0).clamp(min=_LEAST)
    return up * (tensors["strength"] / len(down) / lengths), down * tensors["norms"]


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the product."""
    from lora_inspect.maths.change import LowRank

    return LowRank(*matrices(tensors), 1.0)


ALGORITHM = Algorithm(
    name="delora",
    title="DeLoRA",
    equation="W + B · diag(λ / (r · ‖aᵢ‖ · ‖bᵢ‖)) · A · diag(w_norm)",
    writers="PEFT",
    dialects={
        "peft": {"down": ".delora_A", "up": ".delora_B", "strength": ".delora_lambda", "norms": ".delora_w_norm"}
    },
    marks=("down", "up", "strength", "norms"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change, low_rank=matrices),
    transposed=False,
    blends=False,
    has_alpha=False,
    peft_type="DELORA",
)
