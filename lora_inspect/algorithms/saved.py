"""A tensor that is saved whole and replaces the base's: PEFT's `modules_to_save` and `bias`.

PEFT has no multiplier between the two: a module runs with the saved tensor or with its own, and the scale of an adapter
is only that of its factors. No suffix marks such a tensor, so that reading takes it on the evidence of a config.
"""

from typing import TYPE_CHECKING

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# The tensor that counts, and what PEFT writes beside it and does not run: the same once more, and the base's own.
SAVED, TWIN, ORIGINAL = "saved", "twin", "original"
NAME = "saved"


def check(shapes: Shapes) -> str | None:
    """Return an error if the module holds only tensors that PEFT does not run, or None."""
    return None if SAVED in shapes else "it holds only tensors that PEFT does not run"


def shape(shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the tensor as the base stores it."""
    return shapes[SAVED]


def misfit(shapes: Shapes, stored: tuple[int, ...]) -> str | None:
    """Return the mismatch with a tensor of this shape, or None."""
    return None if shapes[SAVED] == stored else f"is saved with the shape {list(shapes[SAVED])}"


def rank(shapes: Shapes) -> None:
    """Return None: there is no rank."""
    return None


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the replacement of the base's tensor as a matrix (rows, columns), with one column for a vector."""
    from lora_inspect.maths.change import Replaced

    tensor = tensors[SAVED]
    return Replaced(tensor.reshape(tensor.shape[0] if tensor.shape else 1, -1))


ALGORITHM = Algorithm(
    name=NAME,
    title="a tensor saved whole",
    equation="the tensor in the place of W",
    writers="PEFT (modules_to_save, bias)",
    dialects={},
    formula=Formula(check, shape, misfit, rank, change),
    transposed=False,
    has_alpha=False,
    replaces=True,
    idle=(TWIN, ORIGINAL),
)


def saved(parameter: str) -> Algorithm:
    """Return the algorithm that puts a tensor in the place of the `parameter` of a layer."""
    return ALGORITHM._replace(parameter=parameter)
