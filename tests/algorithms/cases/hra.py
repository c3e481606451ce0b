"""HRA of PEFT: W · (I - 2u₁u₁ᵀ)(I - 2u₂u₂ᵀ)… with unit vectors, which `apply_GS` makes orthonormal first."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def formula(orthonormal: bool):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        vectors = tensors["layer.hra_u"]
        if orthonormal:
            vectors = torch.linalg.qr(vectors).Q
        weight = layer.weight.detach().flatten(1)
        for u in vectors.T:
            weight = weight - 2 * torch.outer(weight @ u, u) / u.dot(u)
        return {"layer.weight": weight.view_as(layer.weight)}

    return oracle


def cases() -> Iterator[Case]:
    for kind in ("linear", "square", "conv 1x1", "conv 3x3"):
        for rank in (1, 2, 5, 14):
            # Of more vectors than inputs those that are left have no direction.
            for orthonormal in (False, True) if rank < 6 else (False,):
                config = peft.HRAConfig(r=rank, apply_GS=orthonormal, init_weights=False, target_modules=["layer"])
                name = f"HRA of {rank}{', orthonormal' if orthonormal else ''}"
                yield of_peft(name, config, kind, formula(orthonormal), multipliers=(1.0,))
