"""Diag-OFT of LyCORIS: Wₖ' = rescale · (m · (Rₖ - I) + I)ᵀ Wₖ with R = (I + Q)(I - Q)^-1, in float32 as it computes."""

from collections.abc import Iterator

import torch
from libraries import of_lycoris
from library_case import LAYERS, Case
from lycoris.modules.diag_oft import DiagOFTModule
from torch import Tensor, nn

# The norm of all generators together is about 4 here: a limit that binds, and one that does not.
CONSTRAINTS = {"linear": (0.0, 0.05, 5.0), "conv 3x3": (0.0, 0.1)}


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    weight, stored = layer.weight.detach(), tensors["oft_blocks"]
    count, size, _ = stored.shape
    skew = stored - stored.mT
    limit = float(tensors["alpha"]) * weight.shape[0]
    if limit > 0 and skew.norm() + 1e-8 > limit:
        skew = skew * limit / (skew.norm() + 1e-8)
    one = torch.eye(size, dtype=torch.float64)
    changed = torch.empty_like(weight)
    for block in range(count):
        rotation = (one + skew[block]) @ torch.linalg.inv(one - skew[block])
        rows = slice(block * size, (block + 1) * size)
        turned = (multiplier * (rotation - one) + one).T
        changed[rows] = torch.einsum("ij,j...->i...", turned, weight[rows])
    return {"layer.weight": tensors.get("rescale", 1.0) * changed}


def cases() -> Iterator[Case]:
    for kind in LAYERS:
        for rescaled in (False, True):
            for constraint in CONSTRAINTS.get(kind, (0.0,)):
                yield of_lycoris(
                    f"OFT{' with rescale' if rescaled else ''}, limit {constraint}",
                    DiagOFTModule,
                    kind,
                    of_keys,
                    dtype=torch.float32,
                    lora_dim=4,
                    constraint=constraint,
                    rescaled=rescaled,
                )
