"""AdaLoRA of PEFT: delta = lora_alpha / (init_r + 10^-5) · B @ (E ⊙ A), with A (rank, in·kernel), E (rank, 1).

The rank that training left a module does not count: the divisor is the rank that it began with, which
`adapter_config.json` has. A module may be left with none. Sources: Zhang et al. 2023; the `AdaLoraLayer` of PEFT 0.21.
"""

from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number
from lora_inspect.algorithms.lora import flattened_other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# What PEFT adds to the rank that it divides by.
_TINY = 1e-5


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of down (rank, in·kernel), values (rank, 1) and up (out, rank), or None."""
    down, values, up = (shapes[role] for role in ("down", "values", "up"))
    if any(len(shape) != 2 for shape in (down, values, up)) or values != (down[0], 1) or up[1] != down[0]:
        return f"lora_A {list(down)}, lora_E {list(values)} and lora_B {list(up)} cannot be multiplied"
    if 0 in (up[0], down[1]):
        return f"lora_A {list(down)} or lora_B {list(up)} is empty"
    return None


def shape(shapes: Shapes) -> tuple[int, int]:
    """Return (out, in·kernel) of the weight."""
    return shapes["up"][0], shapes["down"][1]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return flattened_other_than(*shape(shapes), weight) if len(weight) > 1 else "changes a matrix"


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the factor of the product from the config, or an error text if it is unknown."""
    config = around.config
    if config is None:
        return (
            "PEFT keeps its lora_alpha and init_r in adapter_config.json, but this module has none; put it next to "
            "the file"
        )
    alpha, rank = config.get("lora_alpha"), config.get("init_r")
    if not is_number(alpha) or not is_number(rank) or rank != int(rank) or rank < 1:
        return (
            "its adapter_config.json does not say the lora_alpha and init_r of its scale; put the config next to the "
            "file that it was saved with"
        )
    if around.numbers.get("ranknum", rank) != rank:
        return f"its ranknum is not the init_r of {rank} in adapter_config.json; merge it with the PEFT that trained it"
    # Without an alpha PEFT takes the rank that is there.
    return {"factor": (alpha if alpha > 0 else around.shapes["down"][0]) / (rank + _TINY)}


def change(tensors: Tensors, scale: float, alpha: float | None, *, factor: float) -> "Change":
    """Return factor · B @ (E ⊙ A)."""
    from lora_inspect.maths.change import LowRank

    return LowRank(tensors["up"], tensors["values"] * tensors["down"], scale * factor)


ALGORITHM = Algorithm(
    name="adalora",
    title="AdaLoRA",
    equation="W + m · s · B @ (E ⊙ A)",
    writers="PEFT",
    dialects={"peft": {"down": ".lora_A", "up": ".lora_B", "values": ".lora_E", "ranknum": ".ranknum"}},
    marks=("down", "up", "values"),
    formula=Formula(
        check, shape, misfit, rank=lambda shapes: None, change=change, inner=lambda shapes: shapes["down"][0]
    ),
    has_alpha=False,
    numbers=("ranknum",),
    peft_type="ADALORA",
    settings=settings,
    # Those without singular values are LoRA's.
    fits=lambda shapes: "values" in shapes,
)
