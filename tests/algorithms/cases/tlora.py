"""T-LoRA of LyCORIS: W + m · s · (P · diag(λ) · Q - Wᵣ), with the best approximation of W in the place of its start."""

from collections.abc import Iterator

import torch
from libraries import of_lycoris
from library_case import Case
from lycoris.modules.tlora import TLoraModule
from torch import Tensor, nn

RANK, ALPHA = 3, 2.0


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    weight = layer.weight.detach()
    q, p = (tensors[f"{name}_layer.weight"].flatten(1) for name in "qp")
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    change = torch.zeros_like(weight.flatten(1))
    for number, value in enumerate(tensors["lambda_layer"][0]):
        change += value * torch.outer(p[:, number], q[number])
        change -= values[number] * torch.outer(left[:, number], right[number])
    return {"layer.weight": weight + multiplier * ALPHA / RANK * change.view_as(weight)}


def cases() -> Iterator[Case]:
    # LyCORIS decomposes the weight in float32.
    for kind in ("linear", "square", "conv 1x1"):
        yield of_lycoris("T-LoRA", TLoraModule, kind, of_keys, dtype=torch.float32, lora_dim=RANK, alpha=ALPHA)
