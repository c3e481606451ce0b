"""OSF of PEFT: the directions of the smallest singular values of the weight give way to trained ones."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    left, values, right = (tensors[f"layer.osf_svd_params.{name}_low"] for name in "USV")
    weight = layer.weight.detach()
    # The first directions span what W Wᵀ does most to.
    _, directions = torch.linalg.eigh(weight @ weight.T)
    kept = directions[:, directions.shape[1] - (min(weight.shape) - len(values)) :]
    return {"layer.weight": kept @ kept.T @ weight + left @ torch.diag(values) @ right}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for kept in (1, 5, 11):
            config = peft.OSFConfig(effective_rank=kept, target_modules=["layer"])
            # PEFT decomposes in float32.
            yield of_peft(f"OSF of {kept}", config, kind, oracle, dtype=torch.float32, multipliers=(1.0,))
