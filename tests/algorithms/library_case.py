"""One adapter on one layer, made by a real library, with what that library's forward makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH = 3


@dataclass
class Case:
    """A layer called `layer`, the tensors and the config of an adapter for it, and the truth about both.

    `library(multiplier)` is the output of the real library's own forward for `input`, and `oracle(multiplier)` are the
    changed tensors of the layer in float64 by a formula written out in the case. `forward(multiplier)` is the output
    of our own training module, None where there is none. `bound` is relative to the largest number compared: the
    rounding of the type in which the library computes, some products of it.
    """

    id: str
    layer: nn.Module
    tensors: Mapping[str, Tensor]
    library: Callable[[float], Tensor]
    oracle: Callable[[float], dict[str, Tensor]]
    input: Tensor
    config: Mapping[str, Any] | None = None
    multipliers: tuple[float, ...] = (1.0, 0.5, -1.0)
    forward: Callable[[float], Tensor] | None = None
    dora_rule: str | None = None
    bound: float = 1e-9
    dtype: torch.dtype = torch.float64
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> dict[str, Tensor]:
        """The layer's own tensors, as a base holds them."""
        return {f"layer.{name}": tensor.detach().clone() for name, tensor in own_tensors(self.layer).items()}


def own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters of a layer itself, whatever a library has hung into it."""
    names = ("weight", "bias", "modulation")
    return {name: tensor for name in names if (tensor := getattr(layer, name, None)) is not None}


class Modulated(nn.Module):
    """What a block of Wan does with the parameter that has no layer: six vectors are added to those of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 6, 8))

    def forward(self, input: Tensor) -> Tensor:
        return input + self.modulation


# What each kind of layer is made of: (module, shape of an input without the batch).
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 20), (12,)),
    "square": (lambda: nn.Linear(12, 12), (12,)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (6, 7)),
    "conv 1x1": (lambda: nn.Conv2d(6, 8, 1), (6, 5, 5)),
    "conv 3x3": (lambda: nn.Conv2d(6, 8, 3, padding=1), (6, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1)), (4, 2, 5, 5)),
}

# Layers wide enough for Kronecker factors that are products of rank 2 themselves.
WIDE: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "wide linear": (lambda: nn.Linear(12, 30), (12,)),
    "wide conv1d": (lambda: nn.Conv1d(6, 30, 3, padding=1), (6, 7)),
    "wide conv 3x3": (lambda: nn.Conv2d(6, 30, 3, padding=1), (6, 5, 5)),
    "wide conv3d": (lambda: nn.Conv3d(6, 30, (1, 3, 3), padding=(0, 1, 1)), (6, 2, 5, 5)),
}

# A layer without an even size, for transforms that go by halves.
ODD: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {"odd": (lambda: nn.Linear(9, 7), (9,))}

NORMS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: nn.LayerNorm(12), (12,)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 5, 5)),
}


def make(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A layer of this kind with random numbers in it, and an input."""
    generator = torch.Generator().manual_seed(seed)
    module, shape = (LAYERS | WIDE | ODD | NORMS)[kind]
    layer = fill(module().to(dtype), generator)
    return layer, torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64).to(dtype)


def embedding(rows: int, columns: int) -> tuple[nn.Module, Tensor]:
    """An Embedding with random numbers in it, and an input that takes each row once."""
    layer = fill(nn.Embedding(rows, columns).double(), torch.Generator().manual_seed(rows))
    return layer, torch.arange(rows).reshape(2, -1)


def fill(module: nn.Module, generator: torch.Generator, scale: float = 0.3) -> nn.Module:
    """Random numbers in every parameter. A single one multiplies a whole change: it is at least half of `scale`."""
    with torch.no_grad():
        for parameter in module.parameters():
            numbers = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if numbers.numel() == 1:
                numbers += numbers.sign() / 2
            parameter.copy_(scale * numbers)
    return module


def apply(layer: nn.Module, tensors: Mapping[str, Tensor], input: Tensor) -> Tensor:
    """The layer's output with other tensors in it."""
    if isinstance(layer, Modulated):
        return input + tensors["layer.modulation"]
    weight, bias = tensors["layer.weight"], tensors.get("layer.bias")
    if isinstance(layer, nn.Linear):
        return functional.linear(input, weight, bias)
    if isinstance(layer, nn.Embedding):
        return functional.embedding(input, weight)
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(input, layer.normalized_shape, weight, bias, layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(input, layer.num_groups, weight, bias, layer.eps)
    convolve = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}[type(layer)]
    return convolve(input, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def decomposed(base: Tensor, delta: Tensor, magnitude: Tensor, axis: int, multiplier: float, rule: str) -> Tensor:
    """DoRA written out in float64, over the output (axis 0) or the input (axis 1).

    inside: m·(W + k·delta) / ‖W + k·delta‖. lycoris: V = W + delta, V·(k·(m/(‖V‖ + eps) - 1) + 1) with float32's eps.
    """
    inner = multiplier if rule == "inside" else 1.0
    whole = base + inner * delta
    dims = [dim for dim in range(whole.dim()) if dim != axis]
    norm = whole.square().sum(dims, keepdim=True).sqrt()
    ones = [1] * whole.dim()
    ones[axis] = -1
    gain = magnitude.double().reshape(ones) / (norm if rule == "inside" else norm + 2.0**-23)
    return whole * gain if rule == "inside" else whole * (multiplier * (gain - 1) + 1)
