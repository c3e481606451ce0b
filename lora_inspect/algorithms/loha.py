"""LoHa: the change is the elementwise product of two products of thin factors.

delta = scale · (w1_a @ w1_b) ⊙ (w2_a @ w2_b), with _a as (out, rank) and _b as (rank, in·kernel); the scale,
alpha/rank, counts once. Sources: Hyeon-Woo et al. 2022 (FedPara); the `HadaWeight` of lycoris-lora. Written with
tensor methods alone.
"""

from collections.abc import Mapping
from typing import Any

from lora_inspect.maths.scaling import scale_of

ROLES = ("w1_a", "w1_b", "w2_a", "w2_b")


def factor_shapes(out_features: int, columns: int, rank: int) -> dict[str, tuple[int, ...]]:
    """The shapes by role of the factors of a weight (out, in, *kernel) with so many `columns`, in·kernel."""
    side, base = (out_features, rank), (rank, columns)
    return {"w1_a": side, "w1_b": base, "w2_a": side, "w2_b": base}


def check(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What is wrong with the shapes of the factors by role, or None."""
    if missing := [role for role in ROLES if role not in shapes]:
        return f"{', '.join(missing)} missing"
    if len(shapes["w1_a"]) != 2 or len(shapes["w1_b"]) != 2:
        return f"w1_a {list(shapes['w1_a'])} and w1_b {list(shapes['w1_b'])} are not both matrices"
    expected = factor_shapes(shapes["w1_a"][0], shapes["w1_b"][1], rank(shapes))
    wrong = [role for role in ROLES if tuple(shapes[role]) != expected[role]]
    return f"{wrong[0]} has shape {list(shapes[wrong[0]])}, but {list(expected[wrong[0]])} fits" if wrong else None


def rank(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The inner size of both products: first dimension of w1_b."""
    return shapes["w1_b"][0]


def scale(alpha: float, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """What the delta is multiplied by, once for both products."""
    return scale_of(alpha, rank(shapes), rslora=False)


def delta(factors: Mapping[str, Any]) -> Any:
    """The unscaled change (out, in·kernel)."""
    return (factors["w1_a"] @ factors["w1_b"]) * (factors["w2_a"] @ factors["w2_b"])
