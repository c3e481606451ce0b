"""RandLoRA: W' = W + alpha/r · the sum over bases, whose order in A is another one than in B."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn

OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "of rank 5": {"r": 5},
    "of rank 12": {"r": 12},
    "sparse": {"sparse": True},
    "very sparse": {"very_sparse": True},
    "of alpha 7.5": {"randlora_alpha": 7.5},
}
SHAPES = {"wide": (20, 12), "tall": (12, 20), "square": (12, 12)}


def formula(alpha: float):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        out, columns = layer.weight.shape
        own, gains = tensors["layer.randlora_lambda"], tensors["layer.randlora_gamma"]
        short, long = tensors["base_model.randlora_A"], tensors["base_model.randlora_B"]
        rank, bases = own.shape
        product = torch.zeros(max(out, columns), min(out, columns), dtype=torch.float64)
        for p in range(rank * bases):
            i, j = divmod(p, bases)
            basis, of_rank = divmod(p, rank)
            row = own[i, j] * short[i, 0, : min(out, columns)] * gains[j]
            product += torch.outer(long[: max(out, columns), basis, of_rank], row)
        change = product if columns <= out else product.T
        return {"layer.weight": layer.weight.detach() + alpha / rank * change}

    return oracle


def cases() -> Iterator[Case]:
    for shape, (columns, out) in SHAPES.items():
        for name, options in OPTIONS.items():
            config = peft.RandLoraConfig(**{"r": 3, "randlora_alpha": 4, "target_modules": ["layer"], **options})
            generator = torch.Generator().manual_seed(3)
            layer = nn.Linear(columns, out).double()
            input = torch.randn(3, columns, generator=generator, dtype=torch.float64)
            oracle = formula(config.randlora_alpha)
            yield of_peft(f"RandLoRA {name} {shape}", config, layer, oracle, input, multipliers=(1.0,))
