"""FRoD: W = U · diag(n) · Vᵀ becomes U · (S + diag(l)) · Vᵀ; PEFT keeps U in float32."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn

# PEFT makes sparse tensors, about whose checks torch warns unless they are asked for.
torch.sparse.check_sparse_tensor_invariants.enable()


def formula(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    basis, diagonal = tensors["base_model.frod_V.layer"], tensors["layer.frod_lambda_l"]
    parts = layer.weight.detach() @ torch.linalg.inv(basis).T
    units = parts / parts.square().sum(0).sqrt()
    middle = torch.zeros(len(diagonal), len(diagonal), dtype=torch.float64)
    for at, number in enumerate(diagonal):
        middle[at, at] = number
    rows, columns = tensors["base_model.frod_s_indices.layer"].long().tolist()
    for row, column, number in zip(rows, columns, tensors["layer.frod_lambda_s_values"], strict=True):
        middle[row, column] += number
    return {"layer.weight": units @ middle @ basis.T}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for rate in (0.0, 0.01, 0.3):
            config = peft.FrodConfig(sparse_rate=rate, progressbar=False, target_modules=["layer"])
            name = f"FRoD {rate}"
            yield of_peft(name, config, kind, formula, dtype=torch.float32, multipliers=(1.0,))
