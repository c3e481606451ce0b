"""PEANuT of PEFT: a small network that sees the weight, in every activation that is built in."""

from collections.abc import Iterator
from math import pi, sqrt

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn
from torch.nn import functional

# Written out another way than the package has them.
ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "silu": functional.silu,
    "swish": functional.silu,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "gelu": functional.gelu,
    "gelu_python": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: x / 2 * (1 + torch.tanh(sqrt(2 / pi) * x * (1 + 0.044715 * x * x))),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "mish": functional.mish,
}


def formula(name: str, depth: int, scaling: float):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        own = {key.removeprefix("layer.peanut_"): tensor for key, tensor in tensors.items()}
        act, weight = ACTIVATIONS[name], layer.weight.detach()
        columns = []
        for column in weight.T:
            hidden, kept = act(own["A.weight"] @ column), []
            for number in range(depth):
                kept.append(hidden)
                hidden = act(own[f"encoders.{number}.weight"] @ hidden)
            for number in range(depth):
                hidden = act(own[f"decoders.{number}.weight"] @ hidden) + kept[depth - 1 - number]
            columns.append(scaling * own["B.weight"] @ hidden)
        return {"layer.weight": weight + torch.stack(columns, 1)}

    return oracle


def cases() -> Iterator[Case]:
    forms = [("relu", depth, kind) for depth in (0, 1, 2, 3) for kind in ("linear", "square")]
    for name, depth, kind in (*forms, *((name, 1, "linear") for name in ACTIVATIONS if name != "relu")):
        config = peft.PeanutConfig(r=3, depth=depth, act_fn=name, scaling=1.5, target_modules=["layer"])
        title = f"PEANuT, {name}, depth {depth},"
        # One of them has a constant that is rounded to so many digits.
        bound = 1e-9 if name != "gelu_fast" else 1e-6
        case = of_peft(title, config, kind, formula(name, depth, 1.5), multipliers=(1.0,))
        case.bound = bound
        yield case
