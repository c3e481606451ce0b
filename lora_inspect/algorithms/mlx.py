"""LoRA of Apple's mlx-lm, with transposed factors and a scale that is not alpha/rank.

- of a Linear: lora_a (in, rank) and lora_b (rank, out); delta = scale · (lora_a @ lora_b)ᵀ of the weight (out, in).
- of an Embedding: lora_a (num, rank) and lora_b (rank, dim), which are those of a Linear that is applied to one-hot
  vectors, with its weight stored as (num, dim).
- of all experts of a layer: lora_a (experts, rank, in), up to mlx-lm 0.28 (experts·rank, in), and lora_b
  (experts, out, rank); delta of expert e = scale · lora_b_e @ lora_a_e.

A magnitude `m` is that of the rows of a weight as it is stored: the outputs of a Linear, the (num) rows of an
Embedding. No suffix shows which of these it is. Sources: `LoRALinear`, `LoRAEmbedding`, `LoRASwitchLinear`,
`DoRALinear` and `DoRAEmbedding` of mlx-lm 0.32.2.
"""

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms import lora, lora_embedding
from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

NAME, EXPERTS = NAMES = ("mlx", "mlx_experts")
# PEFT's.
_LORA_EMBEDDING = lora_embedding.ALGORITHMS[0]
SUFFIXES = {"down": ".lora_a", "up": ".lora_b"}


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of lora_a and lora_b of any kind of layer, or None."""
    down, up = shapes["down"], shapes["up"]
    if 0 in down or 0 in up:
        return f"lora_a {list(down)} or lora_b {list(up)} is empty"
    if len(up) == 3:
        return _check_experts(down, up)
    if len(down) != 2 or len(up) != 2:
        return f"lora_a {list(down)} and lora_b {list(up)} are not matrices"
    if down[1] != up[0]:
        return f"lora_a {list(down)} has rank {down[1]} and lora_b {list(up)} has rank {up[0]}"
    return None


def _check_experts(down: tuple[int, ...], up: tuple[int, ...]) -> str | None:
    experts, _, rank = up
    if len(down) not in (2, 3) or down[:-1] not in ((experts, rank), (experts * rank,)):
        return f"lora_a {list(down)} does not match the {experts} experts of rank {rank} in lora_b {list(up)}"
    return None


def rank(shapes: Shapes) -> int:
    """Return the inner size of the product, that of one expert if there are several."""
    return shapes["up"][2 if len(shapes["up"]) == 3 else 0]


def weight_shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out, in) of the weight in a Linear's order, that of one expert if there are several."""
    if len(shapes["up"]) == 3:
        return shapes["up"][1], shapes["down"][-1]
    return shapes["up"][1], shapes["down"][0]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than(weight_shape(shapes), weight)


def matrices(tensors: Tensors) -> tuple[Any, Any]:
    """Return (up, down) as matrices (out, rank) and (rank, in)."""
    return tensors["up"].transpose(0, 1).contiguous(), tensors["down"].transpose(0, 1).contiguous()


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return scale · (lora_a @ lora_b)ᵀ."""
    from lora_inspect.maths.change import LowRank

    return LowRank(*matrices(tensors), scale)


ALGORITHM = Algorithm(
    name=NAME,
    title="LoRA of MLX",
    equation="W + m · s · (lora_a @ lora_b)ᵀ, of each expert W + m · s · lora_b @ lora_a",
    writers="mlx-lm",
    dialects={"mlx": SUFFIXES},
    marks=("down", "up"),
    formula=Formula(check, weight_shape, misfit, rank, change, low_rank=matrices, thin=rank),
    decomposes=True,
    has_alpha=False,
    scaled=("up",),
)
EMBEDDING = ALGORITHM._replace(transposed=True)


def in_lora(algorithm: Algorithm) -> Algorithm:
    """Return the equivalent algorithm with transposed factors: LoRA, or LoRA of an Embedding."""
    if algorithm.name != NAME:
        return algorithm
    return _LORA_EMBEDDING if algorithm.transposed else lora.ALGORITHM


def shape_of_experts(shapes: Shapes) -> tuple[None, None]:
    """Return unknown sizes: several layers at once have no size of one Linear."""
    return None, None


def misfit_of_experts(experts: int, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight (experts·out, in), or (experts·in, out) as it is stored, or None."""
    out, inputs = weight_shape(shapes)
    if weight in ((experts * out, inputs), (experts * inputs, out)):
        return None
    return f"changes {experts} experts of [{out}, {inputs}]"


def per_expert(up: Any, down: Any) -> tuple[Any, Any]:
    """Return lora_b as (experts, out, rank) and lora_a as (experts, rank, in), whichever version wrote them."""
    return up, down.reshape(up.shape[0], -1, down.shape[-1])


def change_of_experts(tensors: Tensors, scale: float, alpha: float | None, turned: bool) -> "Change":
    """Return the products of all experts, below each other; those of the transposed matrices if `turned`."""
    from lora_inspect.maths.change import ExpertProducts

    up, down = per_expert(tensors["up"], tensors["down"])
    if turned:
        up, down = down.transpose(1, 2), up.transpose(1, 2)
    return ExpertProducts(up, down, scale)


@cache
def mlx_experts(experts: int) -> Algorithm:
    """Return the algorithm of a layer of `experts` experts, which has its own name."""
    formula = Formula(
        check=check,
        shape=shape_of_experts,
        misfit=partial(misfit_of_experts, experts),
        rank=rank,
        change=change_of_experts,
    )
    return ALGORITHM._replace(
        name=EXPERTS,
        title="LoRA of MLX on all experts of a layer",
        formula=formula,
        decomposes=False,
        transposed=False,
        experts=experts,
    )
