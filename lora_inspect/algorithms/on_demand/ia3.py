"""(IA)³ of PEFT: W' = gains · W, one of the gains for each output, or in feedforward layers for each input.

Gains of outputs multiply the output of the layer, so that its bias is multiplied as well. The gains of a Linear layer
show by their shape which they are, those of a convolution do not: there the `feedforward_modules` of the config decide.
PEFT has no multipliers for them. Sources: Liu et al. 2022; the `IA3Layer` of PEFT 0.21.
"""

from functools import partial
from typing import TYPE_CHECKING

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.entries import COLUMNS, ROWS

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the gains (out, 1) or (1, in), of convolutions (1, out or in, 1, …), or None."""
    shape = shapes["gains"]
    others = shape[:1] + shape[2:] if len(shape) > 2 else (min(shape, default=0),)
    if len(shape) < 2 or 0 in shape or any(size != 1 for size in others):
        return f"ia3_l {list(shape)} is not one number for each output or each input"
    return None


def _count(shapes: Shapes) -> int:
    return max(shapes["gains"])


def _axis(shapes: Shapes) -> int | None:
    """Return the axis that the shape shows to be multiplied, or None if it can be either."""
    shape = shapes["gains"]
    return None if len(shape) > 2 or shape == (1, 1) else ROWS if shape[1] == 1 else COLUMNS


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, in) as far as the shape shows them."""
    axis = _axis(shapes)
    return _count(shapes) if axis == ROWS else None, _count(shapes) if axis == COLUMNS else None


def misfit(shapes: Shapes, weight: tuple[int, ...], axis: int | None = None) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    known = (ROWS, COLUMNS) if axis is None else (axis,)
    if len(weight) > 1 and _count(shapes) in [weight[one] for one in known]:
        return None
    what = {None: "outputs or inputs", ROWS: "outputs", COLUMNS: "inputs"}[axis]
    return f"multiplies {_count(shapes)} {what}"


def misfit_of_bias(shapes: Shapes, bias: tuple[int, ...]) -> str | None:
    """Return the mismatch with a bias of this shape, or None."""
    return None if bias == (_count(shapes),) else f"multiplies a bias of {_count(shapes)} numbers"


def change(tensors: Tensors, scale: float, alpha: float | None, axis: int = ROWS) -> "Change":
    """Return the gains along an axis."""
    from lora_inspect.maths.entries import Gains

    return Gains(tensors["gains"].flatten(), axis)


def variant(around: Surroundings) -> Algorithm | str:
    """Return the algorithm for inputs or for outputs, or an error text if that is unknown."""
    told, said = _axis(around.shapes), around.chooses("feedforward_modules")
    if told is None and said is None:
        return (
            "feedforward_modules in adapter_config.json says whether it multiplies inputs or outputs, but this "
            "module has none; put the config next to the file"
        )
    axis = told if said is None else (COLUMNS if said else ROWS)
    if told not in (None, axis):
        return (
            f"it multiplies {'inputs' if told == COLUMNS else 'outputs'} by its shape, but feedforward_modules in "
            "adapter_config.json says the opposite; put the config next to the file that it was saved with"
        )
    return _OF_INPUTS if axis == COLUMNS else _OF_OUTPUTS


def _formula(axis: int) -> Formula:
    return Formula(
        check,
        shape=lambda shapes: (_count(shapes), None) if axis == ROWS else (None, _count(shapes)),
        misfit=partial(misfit, axis=axis),
        rank=lambda shapes: None,
        change=partial(change, axis=axis),
    )


ALGORITHM = Algorithm(
    name="ia3",
    title="(IA)3",
    equation="gains · W, and the bias of gains of outputs",
    writers="PEFT",
    dialects={"peft": {"gains": ".ia3_l"}},
    marks=("gains",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="IA3",
    variant=variant,
)
_OF_INPUTS = ALGORITHM._replace(formula=_formula(COLUMNS))
_OF_OUTPUTS = ALGORITHM._replace(
    formula=_formula(ROWS),
    bias=Formula(check, lambda shapes: (_count(shapes),), misfit_of_bias, rank=lambda shapes: None, change=change),
)
