"""The pair of factor layers beside one base layer, and the values that they start from."""

import math
from typing import Any

from torch import nn

_CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear_factors(in_features: int, out_features: int, rank: int) -> tuple[nn.Linear, nn.Linear]:
    """down (rank, in) and up (out, rank)."""
    down, up = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False)
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
    )
    up = convolution(rank, base.out_channels, 1, bias=False)
    start(down, up)
    down.groups = up.groups = base.groups
    return down, up


def start(down: Any, up: Any) -> None:
    """Hu et al. 2021: `down` random, `up` zero, so that training begins at the base."""
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)
