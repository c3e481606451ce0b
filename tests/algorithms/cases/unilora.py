"""Uni-LoRA: W' = W + B · A, whose entries are those of one vector at saved indices, times saved scales."""

from collections.abc import Iterator

import peft
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def formula(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    vector, weight = tensors["base_model.unilora_theta_d"], layer.weight.detach().clone()
    indices = {side: tensors[f"layer.unilora_indices_{side}"].long() for side in "AB"}
    scales = {side: tensors[f"layer.unilora_scales_{side}"] for side in "AB"}
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            for i in range(len(indices["A"])):
                left = vector[indices["B"][row, i]] * scales["B"][row, i]
                weight[row, column] += left * vector[indices["A"][i, column]] * scales["A"][i, column]
    return {"layer.weight": weight}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for rank, length in ((1, 7), (3, 40)):
            config = peft.UniLoraConfig(r=rank, theta_d_length=length, save_indices=True, target_modules=["layer"])
            yield of_peft(f"Uni-LoRA of rank {rank}", config, kind, formula, multipliers=(1.0,))
