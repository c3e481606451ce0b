"""PEANuT: a small network makes the change out of the weight itself, W' = W + scaling · B f(A W).

f takes each column of A W through `act_fn` and, of a `depth` above 0, through so many encoders and decoders with
residual connections. What the network sees is the weight as the changes before it leave it. PEFT has no strengths for
it. Sources: Zhong et al. 2024; the `PeanutLayer` of PEFT.
"""

from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number, read_fields
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.activations import ACTIVATIONS

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# No network that was trained is deeper; of one that is the config and the file do not agree.
_DEEPEST = 16
# What a network of any layer may make of its weight; beyond it no more than the weight itself has.
_MOST_NUMBERS = 1 << 24
_SIDES = ("encoder", "decoder")


def _layers(side: str, shapes: Shapes) -> list[str]:
    """The roles of the network's layers on one side."""
    return [role for role in (f"{side} {number}" for number in range(_DEEPEST)) if role in shapes]


def check(shapes: Shapes) -> str | None:
    """What is wrong with the shapes of A (r, out), B (out, r) and the layers (r, r), or None."""
    down, up = shapes["down"], shapes["up"]
    if len(down) != 2 or up != down[::-1] or 0 in down:
        return f"peanut_A {list(down)} and peanut_B {list(up)} are not (r, outputs) and (outputs, r)"
    counts = {side: len(_layers(side, shapes)) for side in _SIDES}
    if any(f"{side} {number}" not in shapes for side in _SIDES for number in range(counts[side])):
        return "of its layers some are missing"
    if counts["encoder"] != counts["decoder"]:
        return f"it has {counts['encoder']} encoders and {counts['decoder']} decoders"
    rank = down[0]
    odd = next((role for side in _SIDES for role in _layers(side, shapes) if shapes[role] != (rank, rank)), None)
    return f"{odd} {list(shapes[odd])} is not ({rank}, {rank})" if odd else None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Of the weight the rows are known alone."""
    return shapes["up"][0], None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """What is changed where that is not a weight of this shape, or None."""
    rows, rank = shapes["up"]
    if len(weight) != 2 or weight[0] != rows:
        return f"changes a matrix of {rows} rows"
    if rank * weight[1] > max(prod(weight), _MOST_NUMBERS):
        return f"has a network of {rank} numbers for each column, which is more than a weight of {rows} rows needs"
    return None


def settings(around: Surroundings) -> dict[str, Any] | str:
    """What the config says of the network, or why that is not known."""
    depth = len(_layers("encoder", around.shapes))
    fields = {
        "act_fn": lambda value: isinstance(value, str) and value in ACTIVATIONS,
        "scaling": is_number,
        "depth": lambda value: value == depth and not isinstance(value, bool),
    }
    found = read_fields(around.config, fields, "its network")
    if not isinstance(found, str):
        return {"act_fn": found["act_fn"], "scaling": float(found["scaling"])}
    said = (around.config or {}).get("act_fn")
    if isinstance(said, str) and said not in ACTIVATIONS:
        return f"its act_fn {said[:64]!r} is not built in; merge it with PEFT"
    return found


def change(tensors: Tensors, scale: float, alpha: float | None, *, act_fn: str, scaling: float) -> "Change":
    """The network, which sees the weight when it is folded."""
    from lora_inspect.maths.seen_weight import SeenByNetwork

    shapes = {role: tuple(tensor.shape) for role, tensor in tensors.items()}
    encoders, decoders = ([tensors[role] for role in _layers(side, shapes)] for side in _SIDES)
    return SeenByNetwork(tensors["down"], tensors["up"], encoders, decoders, ACTIVATIONS[act_fn], scale * scaling)


ALGORITHM = Algorithm(
    name="peanut",
    title="PEANuT",
    equation="W + scaling · B f(A W)",
    writers="PEFT",
    dialects={
        "peft": {
            "down": ".peanut_A.weight",
            "up": ".peanut_B.weight",
            **{f"{side} {number}": f".peanut_{side}s.{number}.weight" for side in _SIDES for number in range(_DEEPEST)},
        }
    },
    marks=("down", "up"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    transposed=False,
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="PEANUT",
    settings=settings,
)
