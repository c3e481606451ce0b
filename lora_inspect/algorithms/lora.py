"""LoRA on Linear and on convolutions, with or without a Tucker core (`lora_mid`, LyCORIS's LoCon).

delta = scale · up @ down, with down as (rank, in·kernel). Sources: Hu et al. 2021; for the Tucker form the
`rebuild_tucker` of lycoris-lora.
"""

from collections.abc import Mapping
from typing import Any

from lora_inspect.algorithms.record import Algorithm, Factors, Formula

# Each line is one program's spelling of the same two factors.
_PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora_A", ".lora_B"),
)

SUFFIXES = {
    **{down: "down" for down, _ in _PAIRS},
    **{up: "up" for _, up in _PAIRS},
    ".lora_mid.weight": "mid",
}


def check(factors: Factors) -> str | None:
    """What is wrong with the shapes of down (rank, in, *kernel), up (out, rank, 1…) and mid (rank, rank, *kernel)."""
    down, up, mid = factors["down"].shape, factors["up"].shape, factors.get("mid")
    if len(down) < 2 or len(up) < 2:
        return f"down {list(down)} and up {list(up)} need at least two dimensions each"
    if any(size != 1 for size in up[2:]):
        return f"up {list(up)} has a kernel, which only down may have"
    if 0 in down or 0 in up:
        return f"down {list(down)} or up {list(up)} is empty"
    if mid is None:
        if down[0] != up[1]:
            return f"down {list(down)} has rank {down[0]} and up {list(up)} has rank {up[1]}"
        return None
    if len(mid.shape) < 3 or mid.shape[0] != up[1] or mid.shape[1] != down[0]:
        return f"mid {list(mid.shape)} does not fit between up {list(up)} and down {list(down)}"
    if any(size != 1 for size in down[2:]):
        return f"down {list(down)} has a kernel, but mid {list(mid.shape)} has one too"
    return None


def rank(factors: Factors) -> int:
    """The inner size of the product: first dimension of down."""
    return factors["down"].shape[0]


def delta_shape(factors: Factors) -> tuple[int, ...]:
    """(out, in, *kernel) of the weight that the factors change."""
    kernel = factors["mid"].shape[2:] if "mid" in factors else factors["down"].shape[2:]
    return (factors["up"].shape[0], factors["down"].shape[1], *kernel)


def flatten(tensors: Mapping[str, Any]) -> tuple[Any, Any]:
    """(up, down) as matrices (out, rank) and (rank, in·kernel); a Tucker core is contracted into down.

    With mid M (p, q, *kernel): delta[o, i, x] = Σ_p up[o, p] · Σ_q M[p, q, x] · down[q, i].
    """
    up, down = tensors["up"], tensors["down"]
    up = up.reshape(up.shape[0], -1)
    if "mid" not in tensors:
        return up, down.reshape(down.shape[0], -1)
    mid = tensors["mid"].reshape(up.shape[1], down.shape[0], -1)
    down = down.reshape(down.shape[0], -1)
    contracted = (mid.transpose(1, 2) @ down).transpose(1, 2)
    return up, contracted.reshape(up.shape[1], -1)


def product_squared_norm(up: Any, down: Any) -> Any:
    """‖up @ down‖² in the Frobenius norm, from the two (rank, rank) Gram matrices instead of the product."""
    return ((up.transpose(0, 1) @ up) * (down @ down.transpose(0, 1))).sum().clamp(min=0.0)


LORA = Algorithm(
    name="lora",
    title="LoRA",
    suffixes=SUFFIXES,
    required=("down", "up"),
    formula=Formula(check, rank, delta_shape, flatten),
)
