"""Bases in fp8 with a scale, as trainers keep them."""

import torch
import torch.nn.functional as F
from torch import nn

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def dequantised(base):
    """The weight as a trainer's replacement of an fp8 Linear's forward computes it."""
    scale, weight = base.scale_weight, base.weight
    if scale.dim() < 3:
        return weight.to(scale.dtype) * scale
    return (weight.to(scale.dtype).view(weight.shape[0], scale.shape[1], -1) * scale).view(weight.shape)


def quantise(base, dtype, shape, compute):
    """Cuts the weight into fp8 codes and a scale_weight, and replaces forward on the instance, as trainers do."""
    weight = base.weight.detach()
    groups = weight.reshape(*shape[:2], -1) if len(shape) == 3 else weight
    peak = groups.abs().amax(dim=-1, keepdim=True) if len(shape) > 1 else groups.abs().max().reshape(shape)
    scale = (peak / torch.finfo(dtype).max * 2).to(compute)
    base.weight = nn.Parameter((groups / scale).to(dtype).view(weight.shape), requires_grad=False)
    base.register_buffer("scale_weight", scale)

    def forward(self, x):
        return F.linear(x, dequantised(self), self.bias)

    base.forward = forward.__get__(base, nn.Linear)
