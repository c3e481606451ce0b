"""LoRA on an Embedding, as PEFT has it.

An Embedding is a Linear layer that is applied to one-hot vectors: it maps (num) inputs to (dim) outputs and stores its
weight as (num, dim). delta = scale · B @ A is (dim, num), with A as (rank, num) and B as (dim, rank). Source: the
`Embedding` of PEFT's LoRA.
"""

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes


def check(shapes: Shapes) -> str | None:
    """What is wrong with the shapes of down (rank, num) and up (dim, rank)."""
    if odd := next((role for role in ("down", "up") if len(shapes[role]) != 2), None):
        return f"{odd} {list(shapes[odd])} is no matrix"
    return lora.check(shapes)


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """What the factors change instead of a weight that is stored as the reverse of `weight`, or None."""
    dimension, rows = lora.weight_shape(shapes)
    return None if (dimension, rows) == weight else f"changes an embedding of {rows} rows of {dimension} numbers"


ALGORITHM = Algorithm(
    name="lora_embedding",
    title="LoRA on an Embedding",
    equation="W + m · s · (B @ A)ᵀ",
    writers="PEFT",
    dialects={"peft": {"down": ".lora_embedding_A", "up": ".lora_embedding_B"}},
    marks=("down", "up"),
    formula=Formula(check, lora.weight_shape, misfit, lora.rank, lora.change, low_rank=lora.matrices, rslora=True),
    decomposes=True,
    transposed=True,
    peft_type="LORA",
)
