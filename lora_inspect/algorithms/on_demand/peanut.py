"""PEANuT: a small network makes the change out of the weight itself, W' = W + scaling · B f(A W).

f takes each column of A W through `act_fn` and, of a `depth` above 0, through that many encoders and decoders with
residual connections. The network sees the weight as the changes before it leave it. PEFT has no multipliers for it.
Activation functions have the names of transformers' `ACT2FN`; those with parameters or settings of their own are not
supported. The functions use tensor methods only. Sources: Zhong et al. 2024; the `PeanutLayer` of PEFT.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi, prod, sqrt
from typing import Any

from lora_inspect.algorithms.config_fields import is_number, read_fields
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.change import Blocks, Change, LowRank, Transposed, summed_products


@dataclass(frozen=True, slots=True)
class SeenByNetwork(Change):
    """W + scale · B f(A W), with `down` A (r, out) and `up` B (out, r), and a network f of each column of A W.

    f is `activation`, then the `encoders` (r, r) and `decoders` (r, r), each with the activation after it. The input of
    the last encoder is added to the output of the first decoder, and so on.
    """

    down: Any
    up: Any
    encoders: Sequence[Any]
    decoders: Sequence[Any]
    activation: Callable[[Any], Any]
    scale: float
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Return the network's output for the whole weight: a product of thin matrices with B."""
        hidden = self.activation(summed_products(self.down, blocks))
        kept = []
        for encoder in self.encoders:
            kept.append(hidden)
            hidden = self.activation(encoder @ hidden)
        for decoder in self.decoders:
            hidden = self.activation(decoder @ hidden) + kept.pop()
        return LowRank(self.up, hidden, self.scale)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raise ValueError: it has to see the whole weight first."""
        raise ValueError("the change is not settled yet")

    def transposed(self) -> Change:
        """Return the change of the transposed weight, which is transposed first."""
        return Transposed(self)


def _gelu(values: Any) -> Any:
    """Return x · Φ(x)."""
    return values * 0.5 * (1.0 + (values / sqrt(2.0)).erf())


def _gelu_tanh(values: Any) -> Any:
    """Return the approximation of x · Φ(x) by a hyperbolic tangent."""
    return values * 0.5 * (1.0 + ((values + 0.044715 * values**3) * sqrt(2.0 / pi)).tanh())


def _mish(values: Any) -> Any:
    """Return x · tanh(log(1 + exp x))."""
    return values * _softplus(values).tanh()


def _softplus(values: Any) -> Any:
    return values.clamp(min=0) + (-values.abs()).exp().log1p()


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda values: values,
    "relu": lambda values: values.clamp(min=0),
    "relu2": lambda values: values.clamp(min=0).square(),
    "relu6": lambda values: values.clamp(min=0, max=6),
    "leaky_relu": lambda values: values.clamp(min=0) + 0.01 * values.clamp(max=0),
    "sigmoid": lambda values: values.sigmoid(),
    "tanh": lambda values: values.tanh(),
    "silu": lambda values: values * values.sigmoid(),
    "swish": lambda values: values * values.sigmoid(),
    "quick_gelu": lambda values: values * (1.702 * values).sigmoid(),
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "mish": _mish,
}


# No network that was trained is deeper; of one that is the config and the file do not agree.
_DEEPEST = 16
# What a network of any layer may make of its weight; beyond it no more than the weight itself has.
_MOST_NUMBERS = 1 << 24
_SIDES = ("encoder", "decoder")


def _layers(side: str, shapes: Shapes) -> list[str]:
    """Return the roles of the network's layers on one side."""
    return [role for role in (f"{side} {number}" for number in range(_DEEPEST)) if role in shapes]


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of A (r, out), B (out, r) and the layers (r, r), or None."""
    down, up = shapes["down"], shapes["up"]
    if len(down) != 2 or up != down[::-1] or 0 in down:
        return f"peanut_A {list(down)} and peanut_B {list(up)} are not (r, outputs) and (outputs, r)"
    counts = {side: len(_layers(side, shapes)) for side in _SIDES}
    if any(f"{side} {number}" not in shapes for side in _SIDES for number in range(counts[side])):
        return "some of its layers are missing"
    if counts["encoder"] != counts["decoder"]:
        return f"it has {counts['encoder']} encoders and {counts['decoder']} decoders"
    rank = down[0]
    odd = next((role for side in _SIDES for role in _layers(side, shapes) if shapes[role] != (rank, rank)), None)
    return f"{odd} {list(shapes[odd])} is not ({rank}, {rank})" if odd else None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, None): the columns are unknown."""
    return shapes["up"][0], None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    rows, rank = shapes["up"]
    if len(weight) != 2 or weight[0] != rows:
        return f"changes a matrix of {rows} rows"
    if rank * weight[1] > max(prod(weight), _MOST_NUMBERS):
        return f"has a network of {rank} numbers for each column, more than a weight of {rows} rows needs"
    return None


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the settings of the network from the config, or an error text if they are unknown."""
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
    """Return the network, which sees the weight when it is folded."""
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
