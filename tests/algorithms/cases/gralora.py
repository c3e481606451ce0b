"""GraLoRA of PEFT: k·k blocks with a product each, and a LoRA over all of them."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn

OPTIONS: dict[str, dict[str, Any]] = {
    "k 2": {"r": 4, "gralora_k": 2},
    "k 4": {"r": 8, "gralora_k": 4, "alpha": 5},
    "k 1": {"r": 3, "gralora_k": 1},
    "hybrid": {"r": 6, "gralora_k": 2, "hybrid_r": 3, "alpha": 7},
    "hybrid of 1": {"r": 2, "gralora_k": 2, "hybrid_r": 1},
}


def of(options: dict[str, Any]):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        a, b = (tensors[f"layer.gralora_{name}"] for name in "AB")
        weight, k, piece = layer.weight.detach(), len(a), a.shape[2] // len(a)
        change = torch.zeros_like(weight)
        rows, columns = weight.shape[0] // k, weight.shape[1] // k
        for j in range(k):
            for n in range(k):
                left, right = b[j, n * piece : (n + 1) * piece], a[n, :, j * piece : (j + 1) * piece]
                block = torch.einsum("so,is->oi", left, right)
                change[j * rows : (j + 1) * rows, n * columns : (n + 1) * columns] = block
        hybrid = options.get("hybrid_r", 0)
        if hybrid:
            down, up = (tensors[f"layer.gralora_{name}_general.weight"] for name in "AB")
            change = change + up @ down
        return {"layer.weight": weight + options.get("alpha", 64) / (options["r"] + hybrid) * change}

    return oracle


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for name, options in OPTIONS.items():
            config = peft.GraloraConfig(target_modules=["layer"], **options)
            yield of_peft(f"GraLoRA, {name},", config, kind, of(options), multipliers=(1.0,))
