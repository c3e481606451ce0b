"""PVeRA: W' = W + diag(b) · B · diag(d) · A with the first half of d and of the rows of A."""

from collections.abc import Iterator

import peft
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def formula(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    b, d = tensors["layer.pvera_lambda_b"], tensors["layer.pvera_lambda_d"]
    mean, _ = tensors["base_model.pvera_A"].chunk(2)
    delta = b.diag() @ tensors["base_model.pvera_B"] @ d[: len(d) // 2].diag() @ mean
    return {"layer.weight": layer.weight.detach() + delta}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for rank in (1, 4):
            config = peft.PveraConfig(r=rank, target_modules=["layer"])
            yield of_peft(f"PVeRA of rank {rank}", config, kind, formula, multipliers=(1.0,))
