"""HiRA of PEFT: each entry of the weight times 1 + B @ A. It has no multipliers."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case, embedding
from torch import Tensor, nn


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    weight = layer.weight.detach()
    if isinstance(layer, nn.Embedding):
        a, b = (tensors[f"layer.hira_embedding_{name}"] for name in "AB")
        return {"layer.weight": weight * (1 + torch.einsum("rn,dr->nd", a, b))}
    a, b = (tensors[f"layer.hira_{name}"] for name in "AB")
    product = torch.einsum("or,rix->oix", b.flatten(1), a.reshape(*a.shape[:2], -1))
    return {"layer.weight": weight * (1 + product.reshape(weight.shape))}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square", "conv1d", "conv 1x1", "conv 3x3", "conv3d"):
        yield of_peft("HiRA", peft.HiraConfig(r=4, target_modules=["layer"]), kind, oracle, multipliers=(1.0,))
    patterns = peft.HiraConfig(r=4, rank_pattern={"layer": 2}, target_modules=["layer"])
    yield of_peft("HiRA with patterns", patterns, "linear", oracle, multipliers=(1.0,))
    for rows, columns in ((14, 9), (6, 10), (12, 12)):
        layer, input = embedding(rows, columns)
        config = peft.HiraConfig(r=4, target_modules=["layer"])
        yield of_peft(f"HiRA {rows}x{columns}", config, layer, oracle, input=input, multipliers=(1.0,))
