"""OSF: of the weight's singular value decomposition the directions of the smallest values are trained.

W = U S V keeps its first directions, and the last ones, as many as `S_low` has numbers, become U_low diag(S_low) V_low.
What they were follows from the base's weight, which PEFT decomposes in float32 when it loads the adapter. It has no
strengths for it. Sources: Nayak et al. 2025; the `OSFLayer` of PEFT.
"""

from typing import TYPE_CHECKING

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """What is wrong with the shapes of U_low (out, count), S_low (count,) and V_low (count, in), or None."""
    left, values, right = shapes["left"], shapes["values"], shapes["right"]
    if len(left) != 2 or len(right) != 2 or values != (left[1],) or right[0] != left[1] or 0 in (left[0], right[1]):
        return f"U_low {list(left)}, S_low {list(values)} and V_low {list(right)} are no directions of a matrix"
    if left[1] > min(left[0], right[1]):
        return f"its {left[1]} directions are more than a matrix of {left[0]} by {right[1]} has"
    return None


def shape(shapes: Shapes) -> tuple[int, ...]:
    """(out, in)."""
    return shapes["left"][0], shapes["right"][1]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """What is changed where that is not a weight of this shape, or None."""
    return None if shape(shapes) == weight else f"changes a matrix of {list(shape(shapes))}"


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """The trained directions, which take the place of the weight's own when it is folded."""
    from lora_inspect.maths.singular_directions import ReplacedDirections

    return ReplacedDirections(tensors["left"] * tensors["values"], tensors["right"], scale)


ALGORITHM = Algorithm(
    name="osf",
    title="OSF",
    equation="W with U_low · diag(S_low) · V_low for its smallest directions",
    writers="PEFT",
    dialects={
        "peft": {
            "left": ".osf_svd_params.U_low",
            "values": ".osf_svd_params.S_low",
            "right": ".osf_svd_params.V_low",
        }
    },
    marks=("left", "values", "right"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    transposed=False,
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="OSF",
)
