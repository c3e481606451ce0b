"""SHiRA of PEFT: values that are added to single entries of the weight. It has strengths."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn

# PEFT builds sparse tensors, of which torch wants to know whether they are checked.
torch.sparse.check_sparse_tensor_invariants.enable()


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    weight = layer.weight.detach().clone()
    rows, columns = tensors["layer.shira_indices"].long()
    for row, column, value in zip(rows, columns, tensors["layer.shira_weight"], strict=True):
        weight[row, column] += multiplier * value
    return {"layer.weight": weight}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for rank in (1, 3):
            config = peft.ShiraConfig(r=rank, random_seed=5, target_modules=["layer"])
            yield of_peft(f"SHiRA of {rank}", config, kind, oracle)
