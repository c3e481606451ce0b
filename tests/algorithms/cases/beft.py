"""BEFT of PEFT: a vector that is added to the bias of a Linear layer."""

from collections.abc import Iterator

import peft
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    return {"layer.weight": layer.weight.detach(), "layer.bias": layer.bias.detach() + tensors["layer.beft_bias"][0]}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        yield of_peft("BEFT", peft.BeftConfig(target_modules=["layer"]), kind, oracle, multipliers=(1.0,))
