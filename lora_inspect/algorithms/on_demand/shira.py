"""SHiRA: some entries of the weight are trained, W' = W + multiplier · values at (row, column).

`shira_indices` (2, count) are the rows and the columns, integers that PEFT for Windows stores as floats. Sources:
Bhardwaj et al. 2024; the `ShiraLayer` of PEFT.
"""

from typing import TYPE_CHECKING

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of the values (count,) and the entries (2, count), or None."""
    values, entries = shapes["values"], shapes["entries"]
    if len(values) != 1 or not values[0] or entries != (2, *values):
        return f"shira_weight {list(values)} are not values for shira_indices {list(entries)}"
    return None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return unknown sizes: the file does not give the weight's shape."""
    return None, None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a matrix of this shape, or None."""
    return None if len(weight) == 2 else "changes entries of a matrix"


def outside(tensors: Tensors, weight: tuple[int, ...]) -> str | None:
    """Return an error if an entry is not inside a weight of this shape, or None."""
    for what, entries, size in zip(("row", "column"), tensors["entries"], weight, strict=True):
        if (odd := entries[(entries < 0) | (entries >= size)]).numel():
            return f"changes an entry of {what} {int(odd[0])}"
    return None


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the values at their entries."""
    from lora_inspect.maths.entries import Scattered

    rows, columns = tensors["entries"]
    return Scattered(rows, columns, tensors["values"], scale)


ALGORITHM = Algorithm(
    name="shira",
    title="SHiRA",
    equation="W + m · values at (row, column)",
    writers="PEFT",
    dialects={"peft": {"values": ".shira_weight", "entries": ".shira_indices"}},
    marks=("values", "entries"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change, outside=outside),
    transposed=False,
    has_alpha=False,
    peft_type="SHIRA",
    positions=("entries",),
)
