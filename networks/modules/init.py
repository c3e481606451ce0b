"""The pair of factor layers beside one base layer, and the values that they start from."""

import math
from typing import Any

import torch
from torch import nn

# Where factors are before a trainer moves them, whatever it has chosen for what it makes itself: a seed draws the same
# numbers, and under the device meta there would be none.
_PLACE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
_CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear_factors(in_features: int, out_features: int, rank: int) -> tuple[nn.Linear, nn.Linear]:
    """down (rank, in) and up (out, rank)."""
    down = nn.Linear(in_features, rank, bias=False, **_PLACE)
    up = nn.Linear(rank, out_features, bias=False, **_PLACE)
    start(down, up)
    return down, up


def conv_factors(base: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    """down (rank, in/groups, *kernel), which moves over the input as `base` does, and up (out, rank, 1…)."""
    convolution = _CONVOLUTIONS[len(base.kernel_size) - 1]
    down = convolution(
        base.in_channels // base.groups,
        rank,
        base.kernel_size,
        base.stride,
        base.padding,
        base.dilation,
        padding_mode=base.padding_mode,
        bias=False,
        **_PLACE,
    )
    up = convolution(rank, base.out_channels, 1, bias=False, **_PLACE)
    start(down, up)
    down.groups = up.groups = base.groups
    return down, up


def start(down: Any, up: Any) -> None:
    """Hu et al. 2021: `down` random, `up` zero, so that training begins at the base."""
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)


@torch.no_grad()
def start_orthogonal(down: Any, up: Any) -> None:
    """Both factors of a Linear random and up @ down zero: their rows and columns span halves of the rank.

    Source: `orthogonal_init` of PEFT. Raises ValueError for an odd rank.
    """
    rank, in_features = down.weight.shape
    if rank % 2:
        raise ValueError(f"init_lora_weights=orthogonal needs an even rank, but it is {rank}")
    basis = torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64, device="cpu")).Q
    left = torch.randn(up.weight.shape[0], rank // 2, dtype=torch.float64, device="cpu")
    right = torch.randn(rank // 2, in_features, dtype=torch.float64, device="cpu")
    up.weight.copy_(left @ basis[1::2] / 10)
    down.weight.copy_(basis[0::2].t() @ right / 10)
