"""LoRA on an Embedding, as PEFT has it.

An Embedding is a Linear layer that is applied to one-hot vectors: it maps (num) inputs to (dim) outputs and stores its
weight as (num, dim). The delta = scale · B @ A is (dim, num), with A as (rank, num) and B as (dim, rank). In llama.cpp,
which looks rows of A up, it is (num, rank). Sources: the `Embedding` of PEFT's LoRA; `build_inp_embd` of llama.cpp.
"""

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of down (rank, num) and up (dim, rank), or None."""
    if odd := next((role for role in ("down", "up") if len(shapes[role]) != 2), None):
        return f"{odd} {list(shapes[odd])} is not a matrix"
    return lora.check(shapes)


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight that is stored as the reverse of `weight`, or None."""
    dimension, rows = lora.weight_shape(shapes)
    return None if (dimension, rows) == weight else f"changes an embedding of {rows} rows of {dimension} numbers"


def check_along_tokens(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of down (num, rank) and up (dim, rank), or None."""
    return check(_turned(shapes)) if len(shapes["down"]) == 2 else f"down {list(shapes['down'])} is not a matrix"


def change_along_tokens(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return scale · B @ Aᵀ."""
    return lora.change(turned(tensors), scale, alpha)


def turned(tensors: Tensors) -> Tensors:
    """Return PEFT's factors for llama.cpp's, or the reverse."""
    return {**tensors, "down": tensors["down"].transpose(0, 1)}


def _turned(shapes: Shapes) -> Shapes:
    return {**shapes, "down": shapes["down"][::-1]}


_embedding = partial(
    Algorithm, marks=("down", "up"), decomposes=True, transposed=True, peft_type="LORA", scaled=("up",)
)
ALGORITHMS = (
    _embedding(
        name="lora_embedding",
        title="LoRA on an Embedding",
        equation="W + m · s · (B @ A)ᵀ",
        writers="PEFT",
        dialects={"peft": {"down": ".lora_embedding_A", "up": ".lora_embedding_B"}},
        formula=Formula(
            check, lora.weight_shape, misfit, lora.rank, lora.change, lora.matrices, rslora=True, thin=lora.thin
        ),
    ),
    # Its suffixes are those of LoRA, which is tried first: the shapes tell.
    _embedding(
        name="lora_embedding_along_tokens",
        title="LoRA on an Embedding, with A along the tokens",
        equation="W + m · s · (B @ Aᵀ)ᵀ",
        writers="llama.cpp",
        dialects={"gguf": lora.DIALECTS["gguf"]},
        formula=Formula(
            check_along_tokens,
            shape=lambda shapes: lora.weight_shape(_turned(shapes)),
            misfit=lambda shapes, weight: misfit(_turned(shapes), weight),
            rank=lambda shapes: lora.rank(_turned(shapes)),
            change=change_along_tokens,
            low_rank=lambda tensors: lora.matrices(turned(tensors)),
            rslora=True,
            thin=lora.thin,
        ),
        decomposes=False,
    ),
)


def spelled_in(algorithm: Algorithm, dialects: Collection[str]) -> Algorithm:
    """Return the algorithm, or that of its transposed factors if only that one has one of the dialects."""
    if algorithm not in ALGORITHMS or not algorithm.dialects.keys().isdisjoint(dialects):
        return algorithm
    return next((one for one in ALGORITHMS if not one.dialects.keys().isdisjoint(dialects)), algorithm)
