"""The layers that can be adapted, and the ways in which their forwards may differ from torch's.

A library's subclass of Linear may do anything in its forward. Adding to its output is correct for any of them. Using
its weight (DoRA's norm, a merge, the positions of a convolution's output) is correct only if the output depends on the
weight as in torch's own layer.

Some blocks of torch compute with the weights of their layers without calling them; `FastPaths` prevents that.

Deep copies of adapters, such as the averages of a training, have their own parameters and the same base. A copy is in
no layer's forward. `apply_to` puts it there, around any existing replacement.
"""

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..kernels.coded_weight import decoder_of, decodes, stored_weight

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS: tuple[Any, ...] = (nn.Linear, *CONVOLUTIONS)

# How far an output is from torch's own, relative to it, where it is no other function than that.
_TOLERANCES = {torch.bfloat16: 0.02, torch.float16: 0.01}
_TOLERANCE = 1e-3


def linear_sizes(layer: Any) -> tuple[int, int] | None:
    """Return (in features, out features) of a Linear layer, or None for any other layer.

    transformers' Conv1D, which stores the transpose of a Linear's weight, counts as one.
    """
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return layer.in_features, layer.out_features
    return (layer.nx, layer.nf) if is_transposed(layer) else None


def is_transposed(layer: nn.Module) -> bool:
    """Return True for a Conv1D of transformers, as in GPT-2: a Linear layer with the weight (in, out)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nx") and hasattr(layer, "nf")


def weight_shape(layer: Any) -> tuple[int, ...]:
    """Return (out, in, *kernel) of the layer's numbers, in any form of storage."""
    sizes = linear_sizes(layer)
    return tuple(layer.weight.shape) if sizes is None or is_transposed(layer) else sizes[::-1]


def kind_of(layer: nn.Module) -> Any:
    """Return torch's class of `layer`, or None for a class that only has the name of one."""
    return next((kind for kind in KINDS if isinstance(layer, kind)), None)


def convolve_as(base: Any, input: Tensor, weight: Tensor) -> Tensor:
    """Convolve as `base` does with another weight and no bias, whatever the class of `base` does."""
    convolved: Tensor = kind_of(base)._conv_forward(base, input, weight, None)
    return convolved


def holds_its_weight(layer: nn.Module) -> bool:
    """Return True if a value written into `layer.weight` stays there.

    A parametrization or a hook computes it again each time.
    """
    return isinstance(layer.weight, nn.Parameter) or "weight" in layer._buffers


def follows_its_weight(layer: nn.Module) -> bool:
    """Return True if the layer's class computes the same as torch's own, with any weight.

    A class with its own forward is tried with a random weight, without a trace in any global generator. The result is
    False if it cannot be tried: it may need another device, or codes instead of the weight.
    """
    kind = kind_of(layer)
    names = ("forward", "_conv_forward") if kind in CONVOLUTIONS else ("forward",)
    if kind and all(getattr(type(layer), name) is getattr(kind, name) for name in names):
        return True
    try:
        return _computes_as(layer, kind or nn.Linear)
    except Exception:  # nothing is known of the class, so that it may raise anything
        return False


def check_dora(lora_name: str, base: nn.Module) -> None:
    """Raise ValueError for a base that does not form its outputs from its rows.

    The norms of its rows would mean nothing.
    """
    if decoder_of(base) is None and not follows_its_weight(base) and not _multiplies_its_values(base):
        raise ValueError(
            f"{lora_name}: use_dora does not support a {type(base).__name__}, as its forward uses the weight "
            "differently from torch's layer; leave it out with exclude_patterns"
        )


@torch.no_grad()
def _multiplies_its_values(layer: Any) -> bool:
    """Return True if a Linear layer of any class multiplies with the values of its coded weight."""
    weight = stored_weight(layer)
    if weight is None or linear_sizes(layer) is None or not decodes(weight):
        return False
    try:
        values: Tensor = weight.dequantize()
        input = _drawn((2, layer.in_features), values, torch.Generator().manual_seed(0))
        with torch.autocast(weight.device.type, enabled=False):
            return _is_near(type(layer).forward(layer, input), F.linear(input, values, layer.bias))
    except Exception:  # as in follows_its_weight
        return False


@torch.no_grad()
def _computes_as(layer: Any, kind: Any) -> bool:
    held = layer._parameters if "weight" in layer._parameters else layer._buffers
    weight = held["weight"]
    draws = torch.Generator().manual_seed(0)
    other = _drawn(weight.shape, weight, draws) / weight.shape[1:].numel() ** 0.5
    held["weight"] = nn.Parameter(other, requires_grad=False) if isinstance(weight, nn.Parameter) else other
    try:
        with torch.autocast(weight.device.type, enabled=False):
            if kind is nn.Linear:
                input = _drawn((2, layer.in_features), weight, draws)
                expected = F.linear(input, other, layer.bias)
            else:
                sizes = [(size - 1) * step + 4 for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
                input = _drawn((2, layer.in_channels, *sizes), weight, draws)
                expected = kind._conv_forward(layer, input, other, layer.bias)
            found = type(layer).forward(layer, input)
    finally:
        held["weight"] = weight
    return _is_near(found, expected)


def _is_near(found: Any, expected: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    allowed = _TOLERANCES.get(expected.dtype, _TOLERANCE) * torch.linalg.vector_norm(expected.double())
    return bool(torch.linalg.vector_norm(found.double() - expected.double()) <= allowed)


def _drawn(shape: Any, like: Tensor, draws: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu").to(like.device, like.dtype)


class FastPaths:
    """Torch's transformer blocks with one of `layers`, which they do not call in evaluation mode.

    In torch 2.13 a block that sees a hook calls its layers. In 2.4 it does so only if an attribute says that its
    activation is neither ReLU nor GELU. An encoder packs samples of several lengths into one tensor, which a block that
    calls its layers cannot take. So packing is switched off as well, until no network is in the encoder.
    """

    def __init__(self, root: nn.Module, layers: Collection[nn.Module]) -> None:
        fused = (nn.TransformerEncoderLayer, nn.TransformerEncoder)
        found = (module for module in root.modules() if isinstance(module, fused))
        self.blocks = [block for block in found if any(layer in layers for layer in block.modules())]
        self._hooks: list[tuple[Any, _Seen, RemovableHandle]] = []

    def close(self) -> None:
        """Make every block call its layers; once only."""
        if self._hooks:
            return
        for block in self.blocks:
            seen = _Seen({name: getattr(block, name, 0) for name in _SWITCHES})
            self._hooks.append((block, seen, block.register_forward_pre_hook(seen)))
            for name in seen.on:
                setattr(block, name, type(seen.on[name])(0))

    def open(self) -> None:
        """Undo `close`."""
        for block, seen, hook in self._hooks:
            hook.remove()
            others = [other for other in block._forward_pre_hooks.values() if isinstance(other, _Seen)]
            if others:
                others[0].on |= seen.on
            else:
                for name, value in seen.on.items():
                    setattr(block, name, value)
        self._hooks = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "FastPaths":
        copy = FastPaths(nn.Module(), ())
        copy.blocks = deepcopy(self.blocks, memo)
        return copy


# What an encoder packs samples by, and what a block is fused by: 1 for ReLU, 2 for GELU.
_SWITCHES = ("use_nested_tensor", "activation_relu_or_gelu")


class _Seen:
    """A hook that does nothing, with the switches that were `on` in its block before."""

    def __init__(self, switches: Mapping[str, int]) -> None:
        self.on = {name: value for name, value in switches.items() if value}

    def __call__(self, block: nn.Module, inputs: Any) -> None:
        pass


def copied(module: Any, adapters: Iterable[Any], memo: dict[int, Any], shared: Iterable[Any] = ()) -> Any:
    """Return the deep copy of `module`, without the base layers of its `adapters` and the `shared`.

    `memo` may belong to a larger copy, and then everything is copied: the copy of a model contains those of its
    adapters, and these have the copies of its layers.
    """
    is_whole = bool(memo)
    if not is_whole:
        bases = [getattr(adapter, name, None) for adapter in adapters for name in ("org_module", "org_forward")]
        memo.update((id(one), one) for one in (*bases, *shared) if one is not None)
    copy: nn.Module = module.__class__.__new__(module.__class__)
    memo[id(module)] = copy
    copy.__dict__.update(deepcopy(module.__dict__, memo))
    if not is_whole:
        for adapter in adapters:
            memo[id(adapter)].take_out()
    return copy
