"""Uni-LoRA: W' = W + B · A, with all entries taken from one vector by saved indices, each times its scale.

PEFT has no multiplier for it. Source: the `UniLoraLayer` of PEFT.
"""

from typing import TYPE_CHECKING

from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Shared, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

_ROLES = {f"{what}_{side}": f".unilora_{what}_{side}" for what in ("indices", "scales") for side in ("A", "B")}
_VECTOR = Shared(
    "unilora_theta_d",
    missing="its unilora_theta_d is missing; fetch the file again, or write it again with PEFT",
    alone=(
        "its indices are not in the file (save_indices: false), and PEFT draws them again for all layers of its "
        "model, in an order that the file does not hold; merge it with PEFT on its own base, or train it with "
        "save_indices: true"
    ),
)


def check(shapes: Shapes) -> str | None:
    """Return the problem with the indices and scales of A (rank, in) and B (out, rank), or with the vector, or None."""
    for side in ("A", "B"):
        indices, scales = shapes[f"indices_{side}"], shapes[f"scales_{side}"]
        if len(indices) != 2 or indices != scales:
            return f"unilora_indices_{side} {list(indices)} and unilora_scales_{side} {list(scales)} are not a matrix"
    down, up = shapes["indices_A"], shapes["indices_B"]
    if down[0] != up[1]:
        return f"unilora_indices_A {list(down)} and unilora_indices_B {list(up)} cannot be multiplied"
    vector = shapes.get("vector")
    return None if vector is None or len(vector) == 1 else f"unilora_theta_d {list(vector)} is not a vector"


def shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out, in)."""
    return shapes["indices_B"][0], shapes["indices_A"][1]


def outside(tensors: Tensors, weight: tuple[int, ...]) -> str | None:
    """Return an error for an index that the vector does not have, or None."""
    count = tensors["vector"].shape[0]
    for indices in (tensors["indices_A"], tensors["indices_B"]):
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= count):
            return f"takes entries beyond the {count} of its vector"
    return None


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the product of the two factors."""
    from lora_inspect.maths.change import LowRank

    down, up = (tensors["vector"][tensors[f"indices_{side}"]] * tensors[f"scales_{side}"] for side in ("A", "B"))
    return LowRank(up, down, 1.0)


ALGORITHM = Algorithm(
    name="unilora",
    title="Uni-LoRA",
    equation="W + B · A, of entries of one vector",
    writers="PEFT",
    dialects={"peft": _ROLES},
    marks=tuple(_ROLES),
    formula=Formula(
        check,
        shape,
        misfit=lambda shapes, weight: other_than(shape(shapes), weight),
        rank=lambda shapes: None,
        change=change,
        outside=outside,
        inner=lambda shapes: shapes["indices_A"][0],
    ),
    shared={"vector": _VECTOR},
    positions=("indices_A", "indices_B"),
    blends=False,
    has_alpha=False,
    peft_type="UNILORA",
)
