"""(IA)³ of LyCORIS: W' = (1 + multiplier · gains) · W, one of the gains for each input or for each output.

The gains are stored as `.weight`, and the number `on_input` next to them says which they are. The bias is as it was: so
LyCORIS computes since version 3, while before, and where it multiplies outputs instead of weights (`bypass_mode`), the
gains of outputs multiplied it. No file shows which. Source: the `IA3Module` of lycoris-lora 4.1 and 2.2.
"""

from functools import partial
from typing import TYPE_CHECKING

from lora_inspect.algorithms.on_demand.ia3 import misfit
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.entries import COLUMNS, ROWS

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the gains, (n,) or of a convolution (1, n, 1, …), and the number, or None."""
    gains, switch = shapes["gains"], shapes["on_input"]
    others = gains[:1] + gains[2:] if len(gains) > 1 else ()
    if not gains or 0 in gains or any(size != 1 for size in others):
        return f"the gains {list(gains)} are not one number for each input or each output"
    return None if switch in ((), (1,)) else f"on_input {list(switch)} is not a single number"


def _change(tensors: Tensors, scale: float, alpha: float | None, axis: int = ROWS) -> "Change":
    """Return the change that multiplies a weight by the gains along an axis."""
    from lora_inspect.maths.entries import Gains

    return Gains(1 + tensors["gains"].flatten(), axis)


def _shape(shapes: Shapes, axis: int | None = None) -> tuple[int | None, ...]:
    """Return (out, in), with None for each size that is unknown."""
    count = max(shapes["gains"])
    return count if axis == ROWS else None, count if axis == COLUMNS else None


def variant(around: Surroundings) -> Algorithm | str:
    """Return the algorithm of gains of inputs or of outputs, or an error text if that is unknown."""
    says = around.numbers.get("on_input")
    if says not in (0, 1):
        return "its on_input is neither 0 nor 1; fetch the file again"
    return ALGORITHM._replace(formula=_formula(COLUMNS if says else ROWS))


def _formula(axis: int | None) -> Formula:
    return Formula(
        check,
        shape=partial(_shape, axis=axis),
        misfit=partial(misfit, axis=axis),
        rank=lambda shapes: None,
        change=partial(_change, axis=ROWS if axis is None else axis),
    )


ALGORITHM = Algorithm(
    name="lycoris_ia3",
    title="(IA)3 of LyCORIS",
    equation="(1 + m · gains) · W",
    writers="LyCORIS",
    dialects={"lycoris": {"on_input": ".on_input"}},
    unmarked={"gains": ".weight"},
    marks=("gains", "on_input"),
    common=("gains", "on_input"),
    numbers=("on_input",),
    formula=_formula(None),
    multiplies=True,
    has_alpha=False,
    variant=variant,
)
