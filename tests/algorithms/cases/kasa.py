"""KaSA of PEFT: the least singular triples of a weight give way to a product. PEFT decomposes it in float32."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case, make
from peft.tuners.lora.config import KasaConfig
from torch import Tensor, nn


def of(scale: float):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        weight = layer.weight.detach()
        down, up = tensors["layer.lora_A.weight"], tensors["layer.lora_B.weight"]
        # What is left is the projection on the leading eigenvectors of WᵀW.
        _, vectors = torch.linalg.eigh(weight.T @ weight)
        kept = vectors.flip(1)[:, : min(weight.shape) - len(down)]
        product = torch.einsum("or,r,ri->oi", up, tensors["layer.lora_diag"], down)
        return {"layer.weight": weight @ kept @ kept.T + multiplier * scale * product}

    return oracle


def separated(kind: str) -> tuple[nn.Module, Tensor]:
    """A layer whose singular values are far enough from each other for float32 to tell which are the least."""
    layer, input = make(kind, torch.float32)
    with torch.no_grad():
        left, values, right = torch.linalg.svd(layer.weight.double(), full_matrices=False)
        layer.weight.copy_(left * torch.linspace(2.0, 0.5, len(values)) @ right)
    return layer, input


def cases() -> Iterator[Case]:
    options: dict[str, tuple[dict[str, Any], float]] = {
        "": ({"r": 4, "lora_alpha": 3}, 3 / 4),
        ", RS-LoRA": ({"r": 4, "lora_alpha": 3, "use_rslora": True}, 3 / 2),
        " of r 1": ({"r": 1, "lora_alpha": 2}, 2.0),
        " that leaves one": ({"r": 11, "lora_alpha": 11}, 1.0),
    }
    for kind in ("linear", "square"):
        for name, (fields, scale) in options.items():
            config = peft.LoraConfig(target_modules=["layer"], kasa_config=KasaConfig(), **fields)
            layer, input = separated(kind)
            yield of_peft(f"KaSA{name} {kind}", config, layer, of(scale), input=input, dtype=torch.float32)
