"""BOFT of LyCORIS: W' = rescale · B … B₁ B₀ W, with stages of blocks of rows and the multiplier in each of them."""

from collections.abc import Iterator

import torch
from libraries import of_lycoris
from library_case import LAYERS, Case
from lycoris.modules.boft import ButterflyOFTModule
from torch import Tensor, nn


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    weight, stored = layer.weight.detach(), tensors["oft_blocks"]
    stages, count, size, _ = stored.shape
    skew = stored - stored.mT
    limit = float(tensors["alpha"]) * len(weight)
    if limit > 0 and skew.norm() + 1e-8 > limit:
        skew = skew * limit / (skew.norm() + 1e-8)
    one, changed = torch.eye(size, dtype=torch.float64), weight.clone()
    for stage in range(stages):
        half = 2**stage * size // 2
        # Row k of either half of a group is row 2k or 2k + 1 of what is turned.
        order = [
            start + k + side * half for start in range(0, len(weight), 2 * half) for k in range(half) for side in (0, 1)
        ]
        before = changed[order]
        for block in range(count):
            rotation = (one + skew[stage, block]) @ torch.linalg.inv(one - skew[stage, block])
            turned = multiplier * rotation + (1 - multiplier) * one
            for row in range(size):
                rows = before[block * size : (block + 1) * size]
                changed[order[block * size + row]] = torch.einsum("j,j...->...", turned[row], rows)
    return {"layer.weight": tensors.get("rescale", 1.0) * changed}


# Blocks of so many rows, of which the layers have 20, 12, 8, 8, 8 and 6: up to three stages, and one alone.
SIZES = {"linear": 10, "square": 6, "conv1d": 2, "conv 1x1": 4, "conv 3x3": 2, "conv3d": 6}


def cases() -> Iterator[Case]:
    for kind in LAYERS:
        for constraint, rescaled in ((0.0, False), (0.0, True), (0.05, False)):
            yield of_lycoris(
                f"BOFT{' with rescale' if rescaled else ''}, limit {constraint}",
                ButterflyOFTModule,
                kind,
                of_keys,
                dtype=torch.float32,
                lora_dim=SIZES[kind],
                constraint=constraint,
                rescaled=rescaled,
            )
