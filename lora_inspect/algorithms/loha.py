"""LoHa: the change is the elementwise product of two products of thin factors.

delta = scale · (w1_a @ w1_b) ⊙ (w2_a @ w2_b), with _a as (out, rank) and _b as (rank, in·kernel); the scale,
alpha/rank, counts once. OneTrainer keeps the kernel apart, _a as (out, rank, 1, …) and _b as (rank, in, *kernel). With
Tucker cores t1 and t2 (rank, rank, *kernel) _a is (rank, out) and _b (rank, in).

Sources: Hyeon-Woo et al. 2022 (FedPara); the `HadaWeight` and `HadaWeightTucker` of lycoris-lora. It uses only tensor
methods.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.lora import contracted, other_than_shape
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors
from lora_inspect.maths.products import product, row_wise

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

ROLES, CORES = ("w1_a", "w1_b", "w2_a", "w2_b"), ("t1", "t2")
DIALECTS = {"lycoris": {role: f".hada_{role}" for role in (*ROLES, *CORES)}}

# One of the two products, as (out, rank) and (rank, in·kernel).
Pair = tuple[Any, Any]


def factor_shapes(out_features: int, columns: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes by role of the factors of a weight (out, in, *kernel) with `columns` (in·kernel) columns."""
    side, base = (out_features, rank), (rank, columns)
    return {"w1_a": side, "w1_b": base, "w2_a": side, "w2_b": base}


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of the factors by role, or None."""
    cores = [role for role in CORES if role in shapes]
    if missing := [role for role in (*ROLES, *(CORES if cores else ())) if role not in shapes]:
        return f"{', '.join(missing)} missing"
    for role, least in [("w1_a", 2), ("w1_b", 2), *((core, 3) for core in cores)]:
        if len(shapes[role]) < least or 0 in shapes[role]:
            return f"{role} {list(shapes[role])} is empty or has fewer than {least} dimensions"
    expected = _expected(shapes)
    wrong = [role for role, shape in expected.items() if tuple(shapes[role]) != shape]
    return f"{wrong[0]} has shape {list(shapes[wrong[0]])}, not {list(expected[wrong[0]])}" if wrong else None


def _expected(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes that match the rank, the outputs and the kernel of w1_a, w1_b and t1."""
    side, base, inner = tuple(shapes["w1_a"]), tuple(shapes["w1_b"]), rank(shapes)
    if "t1" in shapes:
        side, base, core = (inner, side[1]), (inner, base[1]), (inner, inner, *shapes["t1"][2:])
        return {"w1_a": side, "w1_b": base, "w2_a": side, "w2_b": base, "t1": core, "t2": core}
    side = (side[0], inner, *[1] * len(side[2:]))
    return {"w1_a": side, "w1_b": base, "w2_a": side, "w2_b": base}


def rank(shapes: Shapes) -> int:
    """Return the inner size of both products: first dimension of w1_b."""
    return shapes["w1_b"][0]


def weight_shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out, in, *kernel) of the weight, or (out, in·kernel) if the factors do not show more."""
    if "t1" in shapes:
        return (shapes["w1_a"][1], shapes["w1_b"][1], *shapes["t1"][2:])
    return (shapes["w1_a"][0], *shapes["w1_b"][1:])


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than_shape(weight_shape(shapes), weight)


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return scale · (w1_a @ w1_b) ⊙ (w2_a @ w2_b), computed for the requested rows."""
    from lora_inspect.maths.change import Additive

    return Additive(partial(_rows, *_pairs(tensors)), scale)


def low_rank(tensors: Tensors) -> tuple[Any, Any]:
    """Return (up, down) of rank²: the row-wise products of a and c, and of bᵀ and dᵀ, for (a @ b) ⊙ (c @ d)."""
    (left_a, left_b), (right_a, right_b) = _pairs(tensors)
    down = row_wise(left_b.transpose(0, 1), right_b.transpose(0, 1)).transpose(0, 1)
    return row_wise(left_a, right_a), down


def thin(shapes: Shapes) -> int:
    """Return the inner size of `low_rank`."""
    return rank(shapes) ** 2


def _pairs(tensors: Tensors) -> tuple[Pair, Pair]:
    """Return both products; a Tucker core is contracted into _b."""
    return _pair(tensors, 1), _pair(tensors, 2)


def _pair(tensors: Tensors, number: int) -> Pair:
    left, right = tensors[f"w{number}_a"], tensors[f"w{number}_b"]
    if f"t{number}" in tensors:
        return left.transpose(0, 1), contracted(tensors[f"t{number}"], right)
    return left.flatten(1), right.flatten(1)


def _rows(left: Pair, right: Pair, first: int, last: int) -> Any:
    return _product((left[0][first:last], left[1]), (right[0][first:last], right[1]))


def _product(left: Pair, right: Pair) -> Any:
    return product(*left) * product(*right)


ALGORITHM = Algorithm(
    name="loha",
    title="LoHa",
    equation="W + m · s · (w1_a @ w1_b) ⊙ (w2_a @ w2_b)",
    writers="LyCORIS, musubi-tuner, OneTrainer, PEFT, `networks`",
    dialects=DIALECTS,
    marks=ROLES,
    formula=Formula(check, weight_shape, misfit, rank, change, low_rank, thin=thin),
    decomposes=True,
    peft_type="LOHA",
    scaled=("w1_a",),
    rows={"w1_a": "w1_b", "w2_a": "w2_b"},
)
