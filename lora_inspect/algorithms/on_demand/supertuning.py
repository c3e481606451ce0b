"""Super-Tuning: some entries of the weight are trained, and in its form Supra a LoRA next to them.

W' = W + values at the entries + (lora_alpha / r) · B @ A. `supertuning_indices` (count,) count the entries from the
first one of the weight, row by row. PEFT has no multipliers for it. Source: the `SupertuningLayer` of PEFT.
"""

from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number, read_fields
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the values (count,), the entries, A (r, in) and B (out, r), or None."""
    values, entries = shapes["values"], shapes.get("entries")
    if len(values) != 1 or not values[0] or entries not in (None, values):
        return f"supertuning_values {list(values)} are not values for supertuning_indices {list(entries or ())}"
    if ("down" in shapes) != ("up" in shapes):
        return "only one of supertuning_lora_A and supertuning_lora_B is there"
    if "down" not in shapes:
        return None
    down, up = shapes["down"], shapes["up"]
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
        return f"supertuning_lora_A {list(down)} and supertuning_lora_B {list(up)} cannot be multiplied"
    return None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, in) if there is a LoRA that shows it."""
    return (shapes["up"][0], shapes["down"][1]) if "down" in shapes else (None, None)


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    told = shape(shapes)
    if len(weight) == 2 and told in ((None, None), weight):
        return None
    return "changes entries of a matrix" if None in told else f"changes a weight of {list(told)}"


def outside(tensors: Tensors, weight: tuple[int, ...], *, lora_scale: float) -> str | None:
    """Return an error if an entry is not inside a weight of this shape, or None."""
    entries = tensors["entries"]
    odd = entries[(entries < 0) | (entries >= prod(weight))]
    return f"changes the entry {int(odd[0])} of a weight" if odd.numel() else None


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the scale of the LoRA, or an error text if it, or the entries, are unknown."""
    if "entries" not in around.shapes:
        return (
            "its entries are not in the file, and PEFT finds others if the base has equal or rounded numbers; save "
            "it with save_precomputed_indices"
        )
    if "down" not in around.shapes:
        return {"lora_scale": 0.0}
    found = read_fields(around.config, {"lora_alpha": is_number}, "the scale of its LoRA")
    return found if isinstance(found, str) else {"lora_scale": found["lora_alpha"] / around.shapes["down"][0]}


def change(tensors: Tensors, scale: float, alpha: float | None, *, lora_scale: float) -> "Change":
    """Return the values at their entries, and the LoRA if there is one."""
    from lora_inspect.maths.change import Both, LowRank
    from lora_inspect.maths.entries import Scattered

    entries = tensors["entries"]
    values = Scattered(entries.new_zeros(1), entries, tensors["values"], scale)
    return Both(values, LowRank(tensors["up"], tensors["down"], scale * lora_scale)) if "down" in tensors else values


ALGORITHM = Algorithm(
    name="supertuning",
    title="Super-Tuning",
    equation="W + values at the entries + alpha/r · B @ A",
    writers="PEFT",
    dialects={
        "peft": {
            "values": ".supertuning_values",
            "entries": ".supertuning_indices",
            "down": ".supertuning_lora_A.weight",
            "up": ".supertuning_lora_B.weight",
        }
    },
    marks=("values",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change, outside=outside),
    transposed=False,
    blends=False,
    has_alpha=False,
    peft_type="SUPERTUNING",
    positions=("entries",),
    settings=settings,
)
