"""MiSS of PEFT: the same small matrix in every shard of r inputs, in its three forms. It has no multipliers.

Bone is its earlier name, which the PEFT of today does not know: MiSS reads the files of PEFT 0.14 and 0.17 once their
keys are renamed, and gives their outputs and their merged weights to the last bit, so that it stands for them here.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn

# Of 12 inputs; 5 and 7 leave a last shard that is narrower.
OPTIONS: dict[str, dict[str, Any]] = {
    "r 4": {"r": 4},
    "r 5": {"r": 5},
    "r 7": {"r": 7},
    "r 12": {"r": 12},
    "random": {"r": 3, "init_weights": False},
    "mini": {"r": 4, "init_weights": "mini", "mini_r": 4},
    "mini of r 5": {"r": 5, "init_weights": "mini", "mini_r": 2},
    "mini of 1": {"r": 3, "init_weights": "mini", "mini_r": 1},
    "bat": {"r": 4, "init_weights": "bat"},
    "bat of 2": {"r": 2, "init_weights": "bat"},
    "bat of 1": {"r": 1, "init_weights": "bat"},
}


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    weight, block = layer.weight.detach(), tensors["layer.miss_block"]
    changed = weight.clone()
    for row in range(len(weight)):
        for column in range(weight.shape[1]):
            if block.dim() == 2:
                changed[row, column] += block[column % len(block), row % block.shape[1]]
                continue
            size = block.shape[1]
            own, shard = block[row // size], weight[row, column // size * size :][:size]
            changed[row, column] += shard @ own[:, column % size] + own[row % size, column % size]
    return {"layer.weight": changed}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for name, options in OPTIONS.items():
            config = peft.MissConfig(target_modules=["layer"], **options)
            yield of_peft(f"MiSS, {name},", config, kind, oracle, multipliers=(1.0,))
    config = peft.MissConfig(r=5, target_modules=["layer"])
    yield of_peft("MiSS in float32", config, "linear", oracle, dtype=torch.float32, multipliers=(1.0,))
    for r, init in ((4, True), (5, True), (4, "bat")):
        config = peft.MissConfig(r=r, init_weights=init, target_modules=["layer"])
        case = of_peft(f"Bone, r {r}, {init},", config, "linear", oracle, multipliers=(1.0,))
        tensors = {key.replace("miss_", "bone_"): tensor for key, tensor in case.tensors.items()}
        said = {name: value for name, value in case.config.items() if not name.startswith(("miss_", "mini_"))}
        yield replace(case, tensors=tensors, config=said | {"peft_type": "BONE"})
