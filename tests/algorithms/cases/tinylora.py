"""TinyLoRA: W' = W + B · (Σ v_i · P_i) · A, of a Linear and of an Embedding."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def formula(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    middle = sum(v * p for v, p in zip(tensors["base_model.tinylora_v.0"], tensors["layer.tinylora_P"], strict=True))
    return {"layer.weight": layer.weight.detach() + tensors["layer.tinylora_B"] @ middle @ tensors["layer.tinylora_A"]}


def cases() -> Iterator[Case]:
    for rank, count in ((1, 4), (3, 1), (3, 5), (50, 2)):
        for kind in ("linear", "square"):
            config = peft.TinyLoraConfig(r=rank, u=count, target_modules=["layer"])
            yield of_peft(f"TinyLoRA {rank} {count}", config, kind, formula, multipliers=(1.0,))
        config = peft.TinyLoraConfig(r=rank, u=count, target_modules=["layer"])
        generator = torch.Generator().manual_seed(4)
        layer = nn.Embedding(9, 5).double()
        input = torch.randint(9, (2, 3), generator=generator)
        yield of_peft(f"TinyLoRA {rank} {count}", config, layer, formula, input, multipliers=(1.0,))
