"""VeRA: W' = W + diag(b) · B · diag(d) · A, with the rows of B and the columns of A that the layer has."""

from collections.abc import Iterator

import peft
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def formula(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    b, d = tensors["layer.vera_lambda_b"], tensors["layer.vera_lambda_d"]
    delta = b.diag() @ tensors["base_model.vera_B"] @ d.diag() @ tensors["base_model.vera_A"]
    return {"layer.weight": layer.weight.detach() + delta}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        yield of_peft("VeRA", peft.VeraConfig(r=5, target_modules=["layer"]), kind, formula, multipliers=(1.0,))
        config = peft.VeraConfig(r=1, d_initial=0.7, projection_prng_key=3, target_modules=["layer"])
        yield of_peft("VeRA of rank 1", config, kind, formula, multipliers=(1.0,))
