"""LoKr: the Kronecker product of a small and a large factor, each whole or a product of thin factors.

delta = scale · w1 ⊗ w2, with w1 as (o1, i1) and w2 as (o2, i2, *kernel), where out = o1·o2 and in = i1·i2. Instead of
w1 there may be w1_a (o1, rank) and w1_b (rank, i1). Instead of w2 there may be w2_a (o2, rank) and w2_b (rank,
i2·kernel), or w2_a (rank, o2) and w2_b (rank, i2) around a Tucker core t2 (rank, rank, *kernel). Where the kernel is
flattened the columns of w1 need not divide the inputs: files of 2023 part in·kernel.

The scale is alpha/rank, once. If both factors are whole it is 1, whatever alpha says, except in files of programs that
still divide alpha: PEFT by the rank of its config, and blissful-tuner, which stores `lokr_factor`, by the largest
dimension of w2.

Sources: Yeh et al. 2024 (LyCORIS); `LokrModule`, `factorization` and `rebuild_tucker` of lycoris-lora. It uses only
tensor methods.
"""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.lora import contracted, other_than_shape
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

ROLES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
# What makes another change of the same factors: a core of the small one, and the first of the product's rows.
_OTHER = {"t1": ".lokr_t1", "row_offset": ".row_offset"}
DIALECTS = {"lycoris": {**{role: f".lokr_{role}" for role in ROLES}, **_OTHER}}


def factorise(dimension: int, factor: int = -1) -> tuple[int, int]:
    """Return (m, n) with m · n = `dimension` and m ≤ n.

    A `factor` that divides the dimension is one of them. Otherwise they are as even as they can be with m at most
    `factor`; -1 sets no bound.
    """
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    bound = factor if factor > 0 else dimension
    small = max(m for m in range(1, int(dimension**0.5) + 1) if dimension % m == 0 and (m <= bound or m == 1))
    return small, dimension // small


def factor_shapes(
    out_features: int, in_features: int, kernel: tuple[int, ...], rank: int, factor: int = -1
) -> dict[str, tuple[int, ...]]:
    """Return the shapes by role of new factors of a weight (out, in, *kernel).

    w1 is whole; w2 is a product while the rank is below half of its larger side, where it saves something.
    """
    (o1, o2), (i1, i2) = factorise(out_features, factor), factorise(in_features, factor)
    if rank < max(o2, i2) / 2:
        return {"w1": (o1, i1), "w2_a": (o2, rank), "w2_b": (rank, i2 * prod(kernel))}
    return {"w1": (o1, i1), "w2": (o2, i2, *kernel)}


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of the factors by role, or None."""
    if other := [role for role in _OTHER if role in shapes]:
        return f"{other[0]} changes the product of its factors, which lora-inspect does not support"
    for whole in ("w1", "w2"):
        parts = (f"{whole}_a", f"{whole}_b")
        present = [part for part in parts if part in shapes]
        if (whole in shapes) == bool(present) or len(present) == 1:
            return f"either {whole} or both {parts[0]} and {parts[1]} are needed"
    if empty := [role for role, shape in shapes.items() if 0 in shape]:
        return f"{empty[0]} {list(shapes[empty[0]])} is empty"
    if wrong := _check_small(shapes) or _check_large(shapes):
        return wrong
    if "w1_b" in shapes and "w2_b" in shapes and shapes["w1_b"][0] != shapes["w2_b"][0]:
        return f"w1_a has rank {shapes['w1_b'][0]} and w2_a has rank {shapes['w2_b'][0]}"
    return None


def _check_small(shapes: Shapes) -> str | None:
    if "w1" in shapes:
        return None if len(shapes["w1"]) == 2 else f"w1 {list(shapes['w1'])} is not a matrix"
    left, right = shapes["w1_a"], shapes["w1_b"]
    if len(left) == len(right) == 2 and left[1] == right[0]:
        return None
    return f"w1_a {list(left)} and w1_b {list(right)} cannot be multiplied"


def _check_large(shapes: Shapes) -> str | None:
    if "w2" in shapes:
        if "t2" in shapes:
            return "t2 is a core between w2_a and w2_b, but w2 is whole"
        return None if len(shapes["w2"]) > 1 else f"w2 {list(shapes['w2'])} has fewer than two dimensions"
    left, right = shapes["w2_a"], shapes["w2_b"]
    if core := shapes.get("t2"):
        fits = (
            len(left) == len(right) == 2 and len(core) > 2 and left[0] == right[0] and tuple(core[:2]) == (left[0],) * 2
        )
        return None if fits else f"t2 {list(core)} does not match w2_a {list(left)} and w2_b {list(right)}"
    if len(left) == 2 and len(right) > 1 and left[1] == right[0]:
        return None
    return f"w2_a {list(left)} and w2_b {list(right)} cannot be multiplied"


def is_whole(shapes: Mapping[str, Any]) -> bool:
    """Return True if neither factor is a product, so that the tensors show no rank."""
    return "w1" in shapes and "w2" in shapes


def rank(shapes: Shapes) -> int | None:
    """Return the inner size of the factor that is a product, or None if both are whole."""
    return next((shapes[role][0] for role in ("w2_b", "w1_b") if role in shapes), None)


def largest_side(shapes: Shapes) -> int:
    """Return the largest dimension of w2, the divisor of alpha in blissful-tuner if both factors are whole."""
    return max(shapes["w2"])


def weight_shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out, in, *kernel) of the weight, or (out, in·kernel) if the factors do not show more."""
    o1, i1 = shapes["w1"] if "w1" in shapes else (shapes["w1_a"][0], shapes["w1_b"][1])
    o2, i2, *kernel = _large_shape(shapes)
    return (o1 * o2, i1 * i2, *kernel)


def _large_shape(shapes: Shapes) -> tuple[int, ...]:
    if "w2" in shapes:
        return tuple(shapes["w2"])
    if "t2" in shapes:
        return (shapes["w2_a"][1], shapes["w2_b"][1], *shapes["t2"][2:])
    return (shapes["w2_a"][0], *shapes["w2_b"][1:])


def delta_size(shapes: Shapes) -> tuple[int, int]:
    """Return (out, in·kernel) of the change."""
    out_features, *columns = weight_shape(shapes)
    return out_features, prod(columns)


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than_shape(weight_shape(shapes), weight)


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return scale · w1 ⊗ w2, computed for the requested rows.

    With the kernel as part of w2's columns, (i1, i2·kernel) are the columns of a flattened (in, *kernel).
    """
    from lora_inspect.maths.change import Additive

    return Additive(partial(_rows, small(tensors), _large(tensors)), scale)


def low_rank(tensors: Tensors) -> tuple[Any, Any] | None:
    """Return (up, down) from (a @ b) ⊗ (c @ d) = (a ⊗ c) @ (b ⊗ d), or None if both factors are whole.

    A whole factor is itself times the smaller identity.
    """
    if is_whole(tensors):
        return None
    left = (tensors["w1_a"], tensors["w1_b"]) if "w1_a" in tensors else _with_identity(tensors["w1"])
    right = _large_pair(tensors) if "w2_a" in tensors else _with_identity(_large(tensors))
    return _kronecker(left[0], right[0]), _kronecker(left[1], right[1])


def thin(shapes: Shapes) -> int | None:
    """Return the inner size of `low_rank`."""
    if is_whole(shapes):
        return None
    first = shapes["w1_b"][0] if "w1_b" in shapes else min(shapes["w1"])
    o2, *columns = _large_shape(shapes)
    return first * (shapes["w2_b"][0] if "w2_b" in shapes else min(o2, prod(columns)))


def small(tensors: Tensors) -> Any:
    """Return w1 as a matrix (o1, i1)."""
    return tensors["w1"] if "w1" in tensors else tensors["w1_a"] @ tensors["w1_b"]


def small_parts(tensors: Tensors) -> tuple[Any, ...]:
    """Return w1 as a matrix (o1, i1), or as a pair (o1, rank) and (rank, i1) with w1 as its product."""
    return (tensors["w1"],) if "w1" in tensors else (tensors["w1_a"], tensors["w1_b"])


def large(tensors: Tensors) -> tuple[Any, ...]:
    """Return w2 as a matrix (o2, i2·kernel), or as a pair (o2, rank) and (rank, i2·kernel)."""
    return (tensors["w2"].flatten(1),) if "w2" in tensors else _large_pair(tensors)


def _large(tensors: Tensors) -> Any:
    left, *right = large(tensors)
    return left @ right[0] if right else left


def _large_pair(tensors: Tensors) -> tuple[Any, Any]:
    left, right = tensors["w2_a"], tensors["w2_b"]
    return (left.transpose(0, 1), contracted(tensors["t2"], right)) if "t2" in tensors else (left, right.flatten(1))


def _rows(small: Any, large: Any, first: int, last: int) -> Any:
    """Return rows `first` to `last` of the product: parts of the group of one row of w1, and whole groups."""
    together = large.shape[0]
    found = small.new_empty(last - first, small.shape[1] * large.shape[1])
    row = first
    while row < last:
        group, inner = divmod(row, together)
        groups = 1 if inner else max(1, (last - row) // together)
        stop = min(last, (group + groups) * together)
        found[row - first : stop - first] = _kronecker(small[group : group + groups], large[inner : inner + stop - row])
        row = stop
    return found


def _kronecker(left: Any, right: Any) -> Any:
    # `kron` wants a view of both, which a column that is a row turned has none of.
    product = left[:, None, :, None] * right[None, :, None, :]
    return product.reshape(left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])


def _with_identity(matrix: Any) -> tuple[Any, Any]:
    identity = matrix.new_zeros(min(matrix.shape), min(matrix.shape)).fill_diagonal_(1)
    return (matrix, identity) if matrix.shape[1] <= matrix.shape[0] else (identity, matrix)


ALGORITHM = Algorithm(
    name="lokr",
    title="LoKr",
    equation="W + m · s · w1 ⊗ w2",
    writers="LyCORIS, musubi-tuner, OneTrainer, ai-toolkit, PEFT, blissful-tuner, `networks`",
    dialects=DIALECTS,
    formula=Formula(check, weight_shape, misfit, rank, change, low_rank, hidden_rank=largest_side, thin=thin),
    decomposes=True,
    peft_type="LOKR",
    scaled=("w1", "w1_a"),
    # LoKr on some rows has its own file.
    fits=lambda shapes: "row_offset" not in shapes,
)
