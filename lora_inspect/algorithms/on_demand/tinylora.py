"""TinyLoRA: W' = W + B · (Σ v_i · P_i) · A, with A, B from the base's decomposition, P drawn, v trained.

PEFT has no multiplier for it. Source: the `TinyLoraLayer` of PEFT.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Shared, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

_NO_VECTOR = (
    "its vector (tinylora_v) is missing, or is one of several that PEFT counts by the order of the modules in its "
    "model; merge it with PEFT on its own base"
)
_NOT_SAVED = (
    "its projection is not in the file (save_projection: false), and PEFT draws it again by the module's place in "
    "its model; merge it with PEFT on its own base, or train it with save_projection: true"
)


def _only(path: str, parts: Collection[str]) -> str | None:
    """Return the only vector of the file, or None if there are several."""
    return next(iter(parts)) if len(parts) == 1 else None


def check(shapes: Shapes) -> str | None:
    """Return the problem with A (rank, in), B (out, rank), P (count, rank, rank) and v (count,), or None."""
    down, up = shapes["A"], shapes["B"]
    if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
        return f"tinylora_A {list(down)} and tinylora_B {list(up)} cannot be multiplied"
    drawn, vector = shapes.get("P"), shapes.get("v")
    if drawn is not None and (len(drawn) != 3 or drawn[1:] != (down[0], down[0])):
        return f"tinylora_P {list(drawn)} are not matrices of rank {down[0]}"
    if vector is not None and (len(vector) != 1 or (drawn is not None and drawn[:1] != vector)):
        return f"tinylora_v {list(vector)} is not a vector with one number for each matrix of tinylora_P"
    return None


def shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out, in), of an Embedding (entries, features)."""
    return shapes["B"][0], shapes["A"][1]


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return no settings, or an error text if the projection is missing."""
    return {} if "P" in around.roles else _NOT_SAVED


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the product of the three matrices, the middle one in B."""
    from lora_inspect.maths.change import LowRank

    vector, drawn = tensors["v"], tensors["P"]
    middle = (vector @ drawn.flatten(1)).view(drawn.shape[1:])
    return LowRank(tensors["B"] @ middle, tensors["A"], 1.0)


ALGORITHM = Algorithm(
    name="tinylora",
    title="TinyLoRA",
    equation="W + B · (Σ vᵢ · Pᵢ) · A",
    writers="PEFT",
    dialects={"peft": {role: f".tinylora_{role}" for role in ("A", "B", "P")}},
    marks=("A", "B"),
    formula=Formula(
        check,
        shape,
        misfit=lambda shapes, weight: other_than(shape(shapes), weight),
        rank=lambda shapes: None,
        change=change,
        inner=lambda shapes: shapes["A"][0],
    ),
    shared={"v": Shared("tinylora_v", _NO_VECTOR, part=_only)},
    settings=settings,
    blends=False,
    has_alpha=False,
    peft_type="TINYLORA",
)
