"""Full differences: a tensor of the parameter's own shape that is added to any parameter.

W + multiplier · diff; there is no rank, and an alpha next to it belongs to another change of the module. Sources: the
`FullModule` of lycoris-lora (`.diff`, `.diff_b`); the step-distilled Wan files, with a `.diff_m` that is added to the
parameter `modulation` of a block.
"""

from typing import TYPE_CHECKING

from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

DIFFERENCE = "difference"


def check(shapes: Shapes) -> str | None:
    """Return an error for a single number or an empty tensor, which is no difference of a parameter."""
    shape = shapes[DIFFERENCE]
    return None if shape and 0 not in shape else f"a difference of shape {list(shape)} changes nothing"


def shape(shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the parameter, (features,) for a norm or a bias."""
    return shapes[DIFFERENCE]


def misfit(shapes: Shapes, parameter: tuple[int, ...]) -> str | None:
    """Return the mismatch with a parameter of this shape, or None."""
    return other_than(shapes[DIFFERENCE], parameter)


def rank(shapes: Shapes) -> None:
    """Return None: there is no rank."""
    return None


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the difference as a matrix (rows, columns), with a single column for a vector."""
    from lora_inspect.maths.change import added

    difference = tensors[DIFFERENCE]
    return added(difference.reshape(difference.shape[0], -1), scale)


def difference_of(parameter: str, suffix: str, name: str, title: str, writers: str = "LyCORIS") -> Algorithm:
    """Return the algorithm that adds the tensor with this suffix to the `parameter` of a layer."""
    return Algorithm(
        name=name,
        title=title,
        equation=f"{parameter} + m · {suffix[1:]}",
        writers=writers,
        dialects={"lycoris": {DIFFERENCE: suffix}},
        marks=(DIFFERENCE,),
        formula=Formula(check, shape, misfit, rank, change),
        parameter=parameter,
        has_alpha=False,
        scaled=(DIFFERENCE,),
        rows={DIFFERENCE: None},
        common=(DIFFERENCE,),
    )


ALGORITHMS = (
    difference_of(WEIGHT, ".diff", "full", "a full weight difference", "LyCORIS, distillers of Wan"),
    difference_of(BIAS, ".diff_b", "full_bias", "a full bias difference", "LyCORIS, distillers of Wan"),
    difference_of("modulation", ".diff_m", "full_modulation", "a full modulation difference", "distillers of Wan"),
)
