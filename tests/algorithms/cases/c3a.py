"""C3A of PEFT: circulant blocks by their first rows. PEFT computes them in float32 always."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    weight, kernel = layer.weight.detach(), tensors["layer.c3a_kernel"]
    size, changed = kernel.shape[2], weight.clone()
    for row in range(len(weight)):
        for column in range(weight.shape[1]):
            changed[row, column] += kernel[row // size, column // size, (column - row) % size] / weight.shape[1]
    return {"layer.weight": changed}


def large(wrapper: Any) -> None:
    """A change as large as the weight, which is divided by the inputs."""
    with torch.no_grad():
        wrapper.c3a_kernel["default"] *= 10


def cases() -> Iterator[Case]:
    for kind, sizes in (("linear", (4, 2, 1)), ("square", (12, 3))):
        for size in sizes:
            config = peft.C3AConfig(block_size=size, target_modules=["layer"])
            fields: dict[str, Any] = {"dtype": torch.float32, "adjust": large, "multipliers": (1.0,)}
            yield of_peft(f"C3A of {size}", config, kind, oracle, **fields)
