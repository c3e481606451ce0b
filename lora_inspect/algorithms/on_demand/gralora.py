"""GraLoRA of PEFT: the weight as k·k blocks, each with its own product, and a LoRA for `hybrid_r`.

`gralora_A` (k, in / k, r) and `gralora_B` (k, r, out / k) are cut into k pieces along r. To the block of outputs j and
inputs n scale · B[j, piece n]ᵀ · A[n, piece j]ᵀ is added. The scale is alpha / (r + hybrid_r), also that of the LoRA of
rank hybrid_r. PEFT's forward and its merge are the same, and it has no multipliers. Sources: Jung et al. 2025, and the
`GraloraLayer` of PEFT 0.21.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number, read_fields
from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.products import product

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of A (k, in / k, r), B (k, r, out / k) and the general pair, or None."""
    down, up = shapes["down"], shapes["up"]
    if len(down) != 3 or len(up) != 3 or 0 in down or 0 in up or (down[0], down[2]) != up[:2] or up[1] % up[0]:
        return f"gralora_A {list(down)} and gralora_B {list(up)} cannot be multiplied in blocks"
    general = [role for role in ("general_down", "general_up") if role in shapes]
    if not general:
        return None
    if len(general) == 1:
        return f"{general[0]} is there without the other tensor of its pair"
    out, inputs = shape(shapes)
    first, second = shapes["general_down"], shapes["general_up"]
    if len(first) != 2 or first[1] != inputs or second != (out, first[0]) or not first[0]:
        return (
            f"gralora_A_general {list(first)} and gralora_B_general {list(second)} are not a pair for ({out}, {inputs})"
        )
    return None


def shape(shapes: Shapes) -> tuple[int, int]:
    """Return (out, in) of the weight."""
    down, up = shapes["down"], shapes["up"]
    return up[0] * up[2], down[0] * down[1]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than(shape(shapes), weight)


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the alpha from the config, or an error text if it is unknown."""
    found = read_fields(around.config, {"alpha": is_number}, "its scale")
    return found if isinstance(found, str) else {"strength": float(found["alpha"])}


def change(tensors: Tensors, scale: float, alpha: float | None, *, strength: float) -> "Change":
    """Return the blocks of products, and the product over all of them."""
    from lora_inspect.maths.change import Additive

    ranks = tensors["down"].shape[2] + (len(tensors["general_down"]) if "general_down" in tensors else 0)
    return Additive(partial(_rows, tensors), strength / ranks)


def _rows(tensors: Tensors, first: int, last: int) -> Any:
    """Return the rows `first` to `last` of the change without its scale."""
    down, up = tensors["down"], tensors["up"]
    count, size = up.shape[0], up.shape[2]
    piece = up.shape[1] // count
    rows = down.new_zeros(last - first, count, down.shape[1])
    for block in range(first // size, (last - 1) // size + 1):
        begin, end = max(first, block * size), min(last, (block + 1) * size)
        # (inputs' block, row, piece) by (inputs' block, piece, input).
        left = up[block, :, begin - block * size : end - block * size].unflatten(0, (count, piece)).transpose(1, 2)
        right = down[:, :, block * piece : (block + 1) * piece].transpose(1, 2)
        rows[begin - first : end - first] = product(left, right).transpose(0, 1)
    rows = rows.flatten(1)
    if "general_up" in tensors:
        rows = rows + product(tensors["general_up"][first:last], tensors["general_down"])
    return rows


ALGORITHM = Algorithm(
    name="gralora",
    title="GraLoRA",
    equation="W + s · a product for each of k · k blocks + s · B @ A",
    writers="PEFT",
    dialects={
        "peft": {
            "down": ".gralora_A",
            "up": ".gralora_B",
            "general_down": ".gralora_A_general.weight",
            "general_up": ".gralora_B_general.weight",
        }
    },
    marks=("down", "up"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    blends=False,
    has_alpha=False,
    peft_type="GRALORA",
    settings=settings,
)
