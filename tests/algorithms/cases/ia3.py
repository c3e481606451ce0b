"""(IA)3 of PEFT: gains of outputs, which the bias has as well, or in feedforward layers of inputs. No multipliers."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case, fill
from torch import Tensor, nn


def formula(axis: int):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        changed = {key: parameter.detach().clone() for key, parameter in layer.named_parameters()}
        for number, gain in enumerate(tensors["layer.ia3_l"].flatten()):
            changed["weight"].select(axis, number).mul_(gain)
            if axis == 0 and "bias" in changed:
                changed["bias"][number] *= gain
        return {f"layer.{key}": tensor for key, tensor in changed.items()}

    return oracle


def cases() -> Iterator[Case]:
    for axis, name in enumerate(("outputs", "inputs")):
        options = {"target_modules": ["layer"], "feedforward_modules": ["layer"] if axis else []}
        for kind in ("linear", "square", "conv 1x1", "conv 3x3", "conv3d"):
            yield of_peft(f"(IA)3 of {name}", peft.IA3Config(**options), kind, formula(axis), multipliers=(1.0,))
        # Its shapes alone do not tell which of both it is.
        layer = fill(nn.Conv2d(6, 6, 3, padding=1).double(), torch.Generator().manual_seed(3))
        input = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        config = peft.IA3Config(**options | {"feedforward_modules": "lay.r" if axis else "lay"})
        yield of_peft(f"(IA)3 of {name}, square", config, layer, formula(axis), input=input, multipliers=(1.0,))
        layer = fill(nn.Linear(12, 20, bias=False).double(), torch.Generator().manual_seed(5))
        input = torch.randn(3, 12, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        config = peft.IA3Config(**options)
        yield of_peft(f"(IA)3 of {name}, no bias", config, layer, formula(axis), input=input, multipliers=(1.0,))
