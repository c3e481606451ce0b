"""llama.cpp's LoRA on an Embedding: PEFT's with A transposed, W + scale · (B @ Aᵀ)ᵀ; no header makes it scale 1."""

from collections.abc import Iterator
from dataclasses import replace

import peft
import torch
from libraries import of_peft
from library_case import Case, embedding
from torch import Tensor, nn

RANK = 4


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    a, b = (tensors[f"layer.lora_embedding_{name}"] for name in "AB")
    return {"layer.weight": layer.weight.detach() + multiplier * torch.einsum("rn,dr->nd", a, b)}


def cases() -> Iterator[Case]:
    # Square, and with as many numbers as rows or fewer: every way in which rows and columns could be mistaken.
    for rows, columns in ((14, 9), (6, 10), (12, 12)):
        layer, input = embedding(rows, columns)
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"])
        case = of_peft(f"{rows}x{columns}", config, layer, oracle, input=input)
        a, b = (next(t for key, t in case.tensors.items() if key.endswith(f"lora_embedding_{name}")) for name in "AB")
        factors = {"layer.weight.lora_a": a.T.contiguous(), "layer.weight.lora_b": b}
        yield replace(case, tensors=factors, config=None)
