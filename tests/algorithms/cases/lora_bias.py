"""PEFT's lora_bias: the bias of the up layer goes to the layer's bias, times the scale of the LoRA."""

from collections.abc import Iterator

import peft
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn

RANK, ALPHA = 4, 3.0
OPTIONS = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["layer"], "lora_bias": True}


def of_keys(scale: float):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        a, b, bias = (tensors[f"layer.{name}"] for name in ("lora_A.weight", "lora_B.weight", "lora_B.bias"))
        change = (b.flatten(1) @ a.flatten(1)).view(layer.weight.shape)
        return {
            "layer.weight": layer.weight.detach() + multiplier * scale * change,
            "layer.bias": layer.bias.detach() + multiplier * scale * bias,
        }

    return oracle


def cases() -> Iterator[Case]:
    patterns = {"rank_pattern": {"layer": 2}, "alpha_pattern": {"layer": 5.0}}
    for kind in ("linear", "square", "conv1d", "conv 1x1", "conv 3x3", "conv3d"):
        yield of_peft("bias", peft.LoraConfig(**OPTIONS), kind, of_keys(ALPHA / RANK))
    for kind in ("linear", "conv 3x3"):
        yield of_peft("bias RS-LoRA", peft.LoraConfig(**OPTIONS, use_rslora=True), kind, of_keys(ALPHA / RANK**0.5))
        yield of_peft("bias patterns", peft.LoraConfig(**OPTIONS, **patterns), kind, of_keys(5.0 / 2))
