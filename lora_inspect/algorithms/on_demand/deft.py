"""DEFT of PEFT: it removes the weight's part along a few directions and, unless `para` says so, adds a new one.

W' = W + Q (scale · R - Sᵀ W) with Q and S from P, `deft_P` (out, r). For "qr" both are the orthonormal factor of its QR
decomposition, with LAPACK's signs. For "relu" Q is P itself and S its positive part. R is `deft_R` (r, in), and there
is none for `para`. The scale is alpha/r, or 1 if the config's alpha is none or 0. PEFT computes in float32, in its
forward as in its merge; here it is the type that weights are folded in. It has no multipliers. The functions use tensor
methods only. Source: the `DeftLayer` of PEFT 0.21.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from lora_inspect.algorithms.config_fields import is_number, is_switch, read_fields
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.change import Blocks, Change, LowRank, summed_products


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of P (out, r) and R (r, in), or None."""
    directions, put = shapes["directions"], shapes.get("put")
    if len(directions) != 2 or 0 in directions or directions[1] > directions[0]:
        return f"deft_P {list(directions)} are not directions of outputs"
    if put is not None and (len(put) != 2 or put[0] != directions[1] or not put[1]):
        return f"deft_P {list(directions)} and deft_R {list(put)} cannot be multiplied"
    return None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, in) of the weight; P gives only the outputs."""
    return shapes["directions"][0], shapes["put"][1] if "put" in shapes else None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a Linear weight of this shape, or None."""
    rows, columns = shape(shapes)
    if len(weight) > 1 and weight[0] == rows and columns in (None, weight[1]) and prod(weight[2:]) == 1:
        return None
    return f"changes a Linear weight of {rows} rows" + (f" and {columns} columns" if columns else "")


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the settings of directions and scale from the config, or an error text if they are unknown."""
    fields = {"decomposition_method": lambda value: value in ("relu", "qr"), "para": is_switch, "alpha": _is_alpha}
    found = read_fields(around.config, fields, "its change")
    if isinstance(found, str):
        return found
    if found.pop("para") is ("put" in around.roles):
        return (
            "its adapter_config.json says para though deft_R exists, or does not though it is missing; put the "
            "config next to the file that it was saved with"
        )
    return {"by_qr": found["decomposition_method"] == "qr", "strength": found["alpha"] or None}


def _is_alpha(value: Any) -> bool:
    return value is None or is_number(value)


def change(tensors: Tensors, scale: float, alpha: float | None, *, by_qr: bool, strength: float | None) -> "Change":
    """Replace the part of the weight along the directions."""
    from torch import linalg

    left = tensors["directions"]
    taken = left.clamp(min=0.0)
    if by_qr:
        left = taken = linalg.qr(left)[0]
    factor = 1.0 if strength is None else strength / left.shape[1]
    return Reprojected(left, taken, tensors["put"] * factor if "put" in tensors else None)


ALGORITHM = Algorithm(
    name="deft",
    title="DEFT",
    equation="W + Q · (alpha/r · R - Sᵀ W), with Q and S from P",
    writers="PEFT",
    dialects={"peft": {"directions": ".deft_P", "put": ".deft_R"}},
    marks=("directions",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="DEFT",
    settings=settings,
)


@dataclass(frozen=True, slots=True)
class Reprojected(Change):
    """W' = W + multiplier · left @ (put - takenᵀ @ W), with left and taken (out, rank) and put (rank, columns).

    A `put` of None puts nothing in.
    """

    left: Any
    taken: Any
    put: Any
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Return the change as a product, from all blocks of the weight."""
        found = summed_products(self.taken.transpose(0, 1), blocks)
        return LowRank(self.left, -found if self.put is None else self.put - found, 1.0)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raise ValueError: it has to see the whole weight before."""
        raise ValueError("a part of a weight is not known before all of its rows are seen")
