"""DeLoRA of PEFT: pairs of vectors of length 1 with one strength, by the lengths of the base's columns."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    down, up, strength, norms = (tensors[f"layer.delora_{name}"] for name in ("A", "B", "lambda", "w_norm"))
    weight = layer.weight.detach()
    change = torch.zeros_like(weight)
    for a, b in zip(down, up.T, strict=True):
        lengths = max(float(a.square().sum().sqrt()), 1e-4) * max(float(b.square().sum().sqrt()), 1e-4)
        change += torch.outer(b, a * norms) * float(strength) / len(down) / lengths
    return {"layer.weight": weight + change}


def short(wrapper: Any) -> None:
    """Vectors below the least length, one of them of zeros."""
    with torch.no_grad():
        wrapper.delora_A["default"][0] *= 1e-6
        wrapper.delora_B["default"][:, 1] = 0.0
        wrapper.delora_B["default"][:, 2] *= 1e-6


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for name, r, adjust in (("", 4, None), (" of r 1", 1, None), (" with short vectors", 4, short)):
            config = peft.DeloraConfig(r=r, target_modules=["layer"])
            yield of_peft(f"DeLoRA{name}", config, kind, oracle, adjust=adjust, multipliers=(1.0,))
    # What is trained counts, and not the number that it began with.
    options: dict[str, Any] = {"rank_pattern": {"layer": 3}, "lambda_pattern": {"layer": 7}}
    config = peft.DeloraConfig(r=4, target_modules=["layer"], **options)
    yield of_peft("DeLoRA with patterns", config, "linear", oracle, multipliers=(1.0,))
