"""PEFT's LoRA on an Embedding, whose weight is stored as (num, dim): W + scale · (B @ A)ᵀ, and DoRA over dim."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case, decomposed, embedding
from torch import Tensor, nn

RANK, ALPHA = 4, 3.0
OPTIONS = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["layer"]}


def of_keys(scale: float):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        weight = layer.weight.detach()
        a, b = (tensors[f"layer.lora_embedding_{name}"] for name in "AB")
        change = scale * torch.einsum("rn,dr->nd", a, b)
        magnitude = tensors.get("layer.lora_magnitude_vector")
        if magnitude is None:
            return {"layer.weight": weight + multiplier * change}
        return {"layer.weight": decomposed(weight, change, magnitude, 1, multiplier, "inside")}

    return oracle


def cases() -> Iterator[Case]:
    patterns = {"rank_pattern": {"layer": 2}, "alpha_pattern": {"layer": 5.0}}
    settings = [
        ("plain", {}, ALPHA / RANK),
        ("RS-LoRA", {"use_rslora": True}, ALPHA / RANK**0.5),
        ("DoRA", {"use_dora": True}, ALPHA / RANK),
        ("RS-LoRA DoRA", {"use_dora": True, "use_rslora": True}, ALPHA / RANK**0.5),
        ("patterns", patterns, 5.0 / 2),
    ]
    # Square, and with as many numbers as rows or fewer: every way in which rows and columns could be mistaken.
    for rows, columns in ((14, 9), (6, 10), (12, 12)):
        for name, options, scale in settings:
            layer, input = embedding(rows, columns)
            title = f"{name} {rows}x{columns}"
            yield of_peft(title, peft.LoraConfig(**OPTIONS, **options), layer, of_keys(scale), input=input)
