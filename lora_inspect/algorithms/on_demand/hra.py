"""HRA: the inputs of a layer go through Householder reflections, W' = W · (I - 2u₁u₁ᵀ)(I - 2u₂u₂ᵀ)…

The columns of `hra_u` (in·kernel, count) are the vectors u; their lengths do not count. `apply_GS` first makes them
orthonormal, W' = W · (I - 2UUᵀ). PEFT has no multipliers for it. The functions use tensor methods only. Sources: Yuan
et al. 2024; the `HRALayer` of PEFT.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from lora_inspect.algorithms.config_fields import is_switch, read_fields
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.change import Change
from lora_inspect.maths.products import by_rows

# So many are taken together without asking whether that is many for a layer; they make a square matrix.
_MOST_VECTORS = 1 << 12


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the vectors (in·kernel, count), or None."""
    vectors = shapes["vectors"]
    if len(vectors) != 2 or 0 in vectors:
        return f"hra_u {list(vectors)} are not vectors of reflections"
    if vectors[1] > max(vectors[0], _MOST_VECTORS):
        return f"hra_u {list(vectors)} are {vectors[1]} reflections of {vectors[0]} numbers, more than a layer needs"
    return None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (None, in·kernel): the rows are unknown."""
    return None, shapes["vectors"][0]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    columns = shapes["vectors"][0]
    return None if len(weight) > 1 and prod(weight[1:]) == columns else f"reflects rows of {columns} numbers"


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the settings of the vectors from the config, or an error text if they are unknown."""
    found = read_fields(around.config, {"apply_GS": is_switch}, "its reflections")
    columns, count = around.shapes["vectors"]
    if not isinstance(found, str) and found["apply_GS"] and count > columns:
        return (
            f"only {columns} of {count} vectors of {columns} numbers can be orthonormal, and PEFT uses the rounding "
            "errors of the others; merge it with PEFT"
        )
    return found


def change(tensors: Tensors, scale: float, alpha: float | None, *, apply_GS: bool) -> "Change":
    """Return the reflections of the columns, one after another, or all at once if they are orthonormal."""
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


def unit(vectors: Any) -> Any:
    """Return the columns of `vectors` (columns, count) with length 1; one of zeros has no direction and becomes NaN."""
    return vectors / vectors.norm(dim=0)


def orthonormal(vectors: Any) -> Any:
    """Make the columns of `vectors` (columns, count) orthonormal from left to right, by modified Gram-Schmidt."""
    left = vectors.clone()
    for at in range(left.shape[1]):
        left[:, at] = left[:, at] / left[:, at].norm()
        own = left[:, at : at + 1]
        left[:, at + 1 :] -= own @ (own.transpose(0, 1) @ left[:, at + 1 :])
    return left


def couplings(units: Any) -> Any:
    """Return T (count, count) with (I - 2u₁u₁ᵀ)(I - 2u₂u₂ᵀ)… = I - U T Uᵀ for unit vectors U (columns, count).

    It is upper triangular. Source: Schreiber and Van Loan 1989, the compact WY form.
    """
    angles = units.transpose(0, 1) @ units
    coupled = angles.new_zeros(angles.shape)
    for at in range(angles.shape[0]):
        coupled[:at, at : at + 1] = -2.0 * coupled[:at, :at] @ angles[:at, at : at + 1]
        coupled[at, at] = 2.0
    return coupled


@dataclass(frozen=True, slots=True)
class ReflectedColumns(Change):
    """W' = W - W U T Uᵀ, with the vectors U (columns, count) and T (count, count). There is no multiplier but 1."""

    vectors: Any
    coupled: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Reflect each row; raise ValueError for a meaningless multiplier."""
        if multiplier != 1:
            raise ValueError(f"a weight is reflected or not, which a multiplier of {multiplier:g} does not say")
        turned = self.vectors.transpose(0, 1)
        rows.sub_(by_rows(lambda own: own @ self.vectors @ self.coupled @ turned, rows))
