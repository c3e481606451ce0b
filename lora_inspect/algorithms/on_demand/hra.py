"""HRA: the inputs of a layer go through Householder reflections, W' = W · (I - 2u₁u₁ᵀ)(I - 2u₂u₂ᵀ)…

The columns of `hra_u` (in·kernel, count) are the vectors u, whose lengths do not count. With `apply_GS` they are made
orthonormal first, W' = W · (I - 2UUᵀ). PEFT has no strengths for it. Sources: Yuan et al. 2024; the `HRALayer` of PEFT.
"""

from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_switch, read_fields
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


# So many are taken together without asking whether that is many for a layer; they make a square matrix.
_MOST_VECTORS = 1 << 12


def check(shapes: Shapes) -> str | None:
    """What is wrong with the shape of the vectors (in·kernel, count), or None."""
    vectors = shapes["vectors"]
    if len(vectors) != 2 or 0 in vectors:
        return f"hra_u {list(vectors)} are no vectors of reflections"
    if vectors[1] > max(vectors[0], _MOST_VECTORS):
        return f"hra_u {list(vectors)} are {vectors[1]} reflections of {vectors[0]} numbers, which no layer needs"
    return None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Of the weight the columns are known alone."""
    return None, shapes["vectors"][0]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """What is reflected where that is not a weight of this shape, or None."""
    columns = shapes["vectors"][0]
    return None if len(weight) > 1 and prod(weight[1:]) == columns else f"reflects rows of {columns} numbers"


def settings(around: Surroundings) -> dict[str, Any] | str:
    """What the config says of the vectors, or why that is not known."""
    found = read_fields(around.config, {"apply_GS": is_switch}, "its reflections")
    columns, count = around.shapes["vectors"]
    if not isinstance(found, str) and found["apply_GS"] and count > columns:
        return (
            f"of {count} vectors of {columns} numbers only {columns} can be orthonormal, and of the others PEFT takes "
            "what rounding leaves; merge it with PEFT"
        )
    return found


def change(tensors: Tensors, scale: float, alpha: float | None, *, apply_GS: bool) -> "Change":
    """The reflections of the columns, one after another; all at once where they are orthonormal."""
    from lora_inspect.maths.reflection import ReflectedColumns, couplings, orthonormal, unit

    vectors = tensors["vectors"]
    if apply_GS:
        return ReflectedColumns(orthonormal(vectors), 2.0 * vectors.new_ones(vectors.shape[1]).diag())
    units = unit(vectors)
    return ReflectedColumns(units, couplings(units))


ALGORITHM = Algorithm(
    name="hra",
    title="HRA",
    equation="W · (I - 2u₁u₁ᵀ) · (I - 2u₂u₂ᵀ) …",
    writers="PEFT",
    dialects={"peft": {"vectors": ".hra_u"}},
    marks=("vectors",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    transposed=False,
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="HRA",
    settings=settings,
)
