"""VB-LoRA: W' = W + B · A, whose pieces are the softmax of their largest logits over the vectors of a bank."""

import math
from collections.abc import Iterator
from typing import Any

import peft
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn

LENGTH = 4


def formula(topk: int):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        weight = layer.weight.detach().clone()
        a = {
            (i, tile): piece(tensors, "A", topk, i, tile) for i in range(2) for tile in range(weight.shape[1] // LENGTH)
        }
        b = {
            (tile, i): piece(tensors, "B", topk, tile, i) for i in range(2) for tile in range(weight.shape[0] // LENGTH)
        }
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                for i in range(2):
                    left, right = b[row // LENGTH, i][row % LENGTH], a[i, column // LENGTH][column % LENGTH]
                    weight[row, column] += left * right
        return {"layer.weight": weight}

    return oracle


def piece(tensors: dict[str, Tensor], side: str, topk: int, first: int, second: int) -> Tensor:
    key, bank = f"layer.vblora_logits_{side}", tensors["base_model.vblora_vector_bank"]
    if key in tensors:
        logits = tensors[key][first, second].tolist()
        chosen = sorted(range(len(logits)), key=lambda index: -logits[index])[:topk]
        parts = [math.exp(logits[index]) for index in chosen]
        weights = [part / sum(parts) for part in parts]
    else:
        chosen = tensors[f"{key}_topk_indices"][first, second].long().tolist()
        weights = tensors[f"{key}_topk_weights"][first, second].tolist()
        weights.append(1 - sum(weights))
    return sum(weight * bank[index] for weight, index in zip(weights, chosen, strict=True))


def cases() -> Iterator[Case]:
    for topk in (1, 2, 3):
        for saved in (False, True):
            options: dict[str, Any] = {"topk": topk, "save_only_topk_weights": saved, "target_modules": ["layer"]}
            for kind in ("linear", "square"):
                config = peft.VBLoRAConfig(r=2, num_vectors=10, vector_length=LENGTH, **options)
                name = f"VB-LoRA of {topk}{', of which only they are saved,' if saved else ''}"
                yield of_peft(name, config, kind, formula(topk), multipliers=(1.0,))
