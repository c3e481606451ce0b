"""OSF of PEFT: the directions of the smallest singular values of the weight give way to trained ones."""

import copy
from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case, fill
from torch import Tensor, nn


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    left, values, right = (tensors[f"layer.osf_svd_params.{name}_low"] for name in "USV")
    weight = layer.weight.detach()
    u, s, v = torch.linalg.svd(weight)
    kept = range(min(weight.shape) - len(values))
    first = sum((s[i] * torch.outer(u[:, i], v[i]) for i in kept), torch.zeros_like(weight))
    return {"layer.weight": first + left @ torch.diag(values) @ right}


def cases() -> Iterator[Case]:
    wide = fill(nn.Linear(20, 12), torch.Generator().manual_seed(4))
    # PEFT decomposes in float32.
    fields = {"dtype": torch.float32, "multipliers": (1.0,)}
    for kept in (1, 5, 11):
        config = peft.OSFConfig(effective_rank=kept, target_modules=["layer"])
        for kind in ("linear", "square"):
            yield of_peft(f"OSF of {kept}", config, kind, oracle, **fields)
        input = torch.randn(3, 20, generator=torch.Generator().manual_seed(5))
        yield of_peft(f"OSF of {kept}, wide,", config, copy.deepcopy(wide), oracle, input=input, **fields)
