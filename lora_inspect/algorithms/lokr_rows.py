"""LoKr on some rows: W' = W + multiplier · scale · (w1 ⊗ w2)[first : first + out], as ComfyUI applies it.

Factors of a fused query, key and value may have a product that cannot be split. They come with a `row_offset`, the
first row of the layer that loads them; the layer's weight gives the number of rows. Source: the `LoKrAdapter` of
ComfyUI.
"""

from functools import partial
from math import prod
from typing import TYPE_CHECKING

from lora_inspect.algorithms import lokr
from lora_inspect.algorithms.lora import other_than_shape
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

FIRST = "row_offset"


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of LoKr's factors and of `row_offset`, or None."""
    others = {role: shape for role, shape in shapes.items() if role != FIRST}
    if wrong := lokr.check(others):
        return wrong
    return None if prod(shapes[FIRST]) == 1 else f"row_offset {list(shapes[FIRST])} is not a single number"


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, in, *kernel) of the weight, with None for the unknown number of rows."""
    return None, *lokr.weight_shape(shapes)[1:]


def misfit(shapes: Shapes, weight: tuple[int, ...], first: int = 0) -> str | None:
    """Return the mismatch if a weight of this shape does not have rows from the first one on, or None."""
    rows, *columns = lokr.weight_shape(shapes)
    if len(weight) > 1 and first + weight[0] <= rows:
        return other_than_shape((weight[0], *columns), weight)
    return f"has the rows {first} to {rows} of a product"


def change(tensors: Tensors, scale: float, alpha: float | None, first: int = 0) -> "Change":
    """Return scale · w1 ⊗ w2 from its row `first` on."""
    from lora_inspect.maths.change import OnRows

    rows, *_ = lokr.weight_shape({role: tuple(tensor.shape) for role, tensor in tensors.items()})
    return OnRows(lokr.change(tensors, scale, alpha), ((0, rows - first, first),))


def variant(around: Surroundings) -> Algorithm | str:
    """Return the algorithm for the rows from the stored number on, or an error text if they are unknown."""
    first = around.numbers.get(FIRST)
    rows, *_ = lokr.weight_shape(around.shapes)
    if first is None or not 0 <= first < rows or first != int(first):
        return f"its row_offset is not one of the {rows} rows of its product; fetch the file again"
    return ALGORITHM._replace(formula=_formula(int(first)))


def _formula(first: int) -> Formula:
    return Formula(check, shape, partial(misfit, first=first), lokr.rank, partial(change, first=first))


ALGORITHM = Algorithm(
    name="lokr_rows",
    title="LoKr on some rows of its product",
    equation="W + m · s · (w1 ⊗ w2)[row_offset : row_offset + out]",
    writers="ComfyUI, while it loads Krea 2",
    dialects={"lycoris": {**lokr.DIALECTS["lycoris"], FIRST: ".row_offset"}},
    marks=(FIRST,),
    formula=_formula(0),
    numbers=(FIRST,),
    scaled=("w1", "w1_a"),
    variant=variant,
    fits=lambda shapes: FIRST in shapes,
)
