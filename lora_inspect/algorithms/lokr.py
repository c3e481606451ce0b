"""LoKr: the change is the Kronecker product of a small and a large factor, each whole or a product of thin ones.

delta = scale · w1 ⊗ w2, with w1 as (o1, i1) and w2 as (o2, i2, *kernel), where out = o1·o2 and in = i1·i2; instead of
w1 there may be w1_a (o1, rank) and w1_b (rank, i1), instead of w2 w2_a (o2, rank) and w2_b (rank, i2·kernel).

The scale is alpha/rank, once, and 1 where both factors are whole, whatever alpha says. Sources: Yeh et al. 2024
(LyCORIS); `LokrModule` and `factorization` of lycoris-lora. Written with tensor methods alone.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from lora_inspect.maths.scaling import scale_of

Shapes = Mapping[str, tuple[int, ...]]


def factorise(dimension: int, factor: int = -1) -> tuple[int, int]:
    """(m, n) with m · n = `dimension` and m ≤ n.

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
    """The shapes by role of new factors of a weight (out, in, *kernel).

    w1 is whole; w2 is a product while the rank is below half of its larger side, where it saves something.
    """
    (o1, o2), (i1, i2) = factorise(out_features, factor), factorise(in_features, factor)
    if rank < max(o2, i2) / 2:
        return {"w1": (o1, i1), "w2_a": (o2, rank), "w2_b": (rank, i2 * prod(kernel))}
    return {"w1": (o1, i1), "w2": (o2, i2, *kernel)}


def check(shapes: Shapes) -> str | None:
    """What is wrong with the shapes of the factors by role, or None."""
    for whole in ("w1", "w2"):
        parts = (f"{whole}_a", f"{whole}_b")
        present = [part for part in parts if part in shapes]
        if (whole in shapes) == bool(present) or len(present) == 1:
            return f"either {whole} or both {parts[0]} and {parts[1]} are needed"
        if present and not _make_product(shapes[parts[0]], shapes[parts[1]]):
            return f"{parts[0]} {list(shapes[parts[0]])} and {parts[1]} {list(shapes[parts[1]])} make no product"
    if "w1" in shapes and len(shapes["w1"]) != 2:
        return f"w1 {list(shapes['w1'])} is no matrix"
    if "w2" in shapes and len(shapes["w2"]) < 2:
        return f"w2 {list(shapes['w2'])} has fewer than two dimensions"
    if "w1_a" in shapes and "w2_a" in shapes and shapes["w1_a"][1] != shapes["w2_a"][1]:
        return f"w1_a has rank {shapes['w1_a'][1]} and w2_a has rank {shapes['w2_a'][1]}"
    return None


def _make_product(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == 2 and len(right) >= 2 and left[1] == right[0]


def is_whole(shapes: Mapping[str, Any]) -> bool:
    """Whether neither factor is a product, so that there is no rank and the scale is 1."""
    return "w1" in shapes and "w2" in shapes


def rank(shapes: Shapes) -> int | None:
    """The inner size of the factor that is a product, or None where both are whole."""
    return next((shapes[role][1] for role in ("w2_a", "w1_a") if role in shapes), None)


def scale(alpha: float, shapes: Shapes) -> float:
    """What the delta is multiplied by."""
    inner = rank(shapes)
    return 1.0 if inner is None else scale_of(alpha, inner, rslora=False)


def delta_size(shapes: Shapes) -> tuple[int, int]:
    """(out, in·kernel) of the change."""
    (o1, i1), (o2, i2) = _matrix(shapes, "w1"), _matrix(shapes, "w2")
    return o1 * o2, i1 * i2


def delta(factors: Mapping[str, Any]) -> Any:
    """The unscaled change (out, in·kernel).

    With the kernel as part of w2's columns, (i1, i2·kernel) are the columns of a flattened (in, *kernel).
    """
    w1 = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
    w2 = factors["w2"] if "w2" in factors else factors["w2_a"] @ factors["w2_b"].flatten(1)
    return w1.contiguous().kron(w2.flatten(1).contiguous())


def _matrix(shapes: Shapes, role: str) -> tuple[int, int]:
    """Rows and columns of a factor, whole or a product."""
    left, right = (role, role) if role in shapes else (f"{role}_a", f"{role}_b")
    return shapes[left][0], prod(shapes[right][1:])
