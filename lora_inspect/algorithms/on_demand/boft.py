"""BOFT of PEFT: stages of rotations of blocks of inputs, one after the other, and a factor for each output.

The stored blocks X (stages, count, size, size) make Q = (X - Xᵀ)/2 and R = (I - Q)(I + Q)^-1. Stage i takes the inputs
of each group of 2ⁱ blocks in half blocks, from its two halves in turn; those of a convolution are in·kernel. W' =
lengths · W · (B … B₁ B₀)ᵀ. PEFT has no multipliers for it. Source: the `BOFTLayer` of PEFT 0.21, where merge and
forward agree; without its CUDA extension it makes only one stage.
"""

from math import prod
from typing import TYPE_CHECKING

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with blocks (stages, count, size, size) and lengths (out, 1) or (1, out), or None."""
    blocks, lengths = shapes["blocks"], shapes["lengths"]
    if len(blocks) != 4 or blocks[2] != blocks[3] or 0 in blocks:
        return f"boft_R {list(blocks)} are not stages of square blocks"
    stages, count, size, _ = blocks
    # Several stages are made of half blocks, one of whole ones.
    if stages > 1 and (size % 2 or stages > count.bit_length() or count % (1 << (stages - 1))):
        return f"boft_R {list(blocks)} are not {stages} stages of blocks"
    if len(lengths) != 2 or 1 not in lengths or 0 in lengths:
        return f"boft_s {list(lengths)} is not one number for each output"
    return None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, in·kernel) of the weight."""
    return prod(shapes["lengths"]), shapes["blocks"][1] * shapes["blocks"][2]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    rows, columns = shape(shapes)
    if len(weight) > 1 and (weight[0], prod(weight[1:])) == (rows, columns):
        return None
    return f"rotates {columns} inputs of {rows} outputs"


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the stages of rotations of inputs, and the factor of each output."""
    from lora_inspect.maths.entries import COLUMNS
    from lora_inspect.maths.rotation import Butterfly, cayley, half_blocks

    stored = tensors["blocks"]
    blocks = cayley((stored.transpose(2, 3) - stored) / 2)
    return Butterfly(blocks, half_blocks, COLUMNS, tensors["lengths"].reshape(-1, 1))


ALGORITHM = Algorithm(
    name="boft",
    title="BOFT of PEFT",
    equation="lengths · W · (B … B₁ B₀)ᵀ",
    writers="PEFT",
    dialects={"peft": {"blocks": ".boft_R", "lengths": ".boft_s"}},
    marks=("blocks", "lengths"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="BOFT",
)
