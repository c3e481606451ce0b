"""The kinds of layers that are adapted, and whether a class of them computes as torch's own does.

A library's subclass of Linear may do anything in its forward. What is added to its output is right beside any of them.
What looks at its weight (DoRA's norm, a merge, the positions of a convolution's output) is right only beside those
whose output changes with the weight as that of torch's own layer does.

Blocks of torch that compute with the weights of their layers and call none of them.

Deep copies of adapters, such as the averages of a training: their own parameters, beside the same base.

A copy is in no layer's forward. `apply_to` puts it there, around what stands there already.
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
    """(in features, out features) of a Linear layer, and of transformers' Conv1D, which stores the transpose of one.

    None for any other layer.
    """
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return layer.in_features, layer.out_features
    return (layer.nx, layer.nf) if is_transposed(layer) else None


def is_transposed(layer: nn.Module) -> bool:
    """Return True for a Conv1D of transformers, as in GPT-2: a Linear layer with the weight (in, out)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nx") and hasattr(layer, "nf")


def weight_shape(layer: Any) -> tuple[int, ...]:
    """(out, in, *kernel) of the numbers that the layer multiplies with, in whichever form it keeps them."""
    sizes = linear_sizes(layer)
    return tuple(layer.weight.shape) if sizes is None or is_transposed(layer) else sizes[::-1]


def kind_of(layer: nn.Module) -> Any:
    """The class of torch that `layer` is an instance of; None for what only has the name of one."""
    return next((kind for kind in KINDS if isinstance(layer, kind)), None)


def convolve_as(base: Any, input: Tensor, weight: Tensor) -> Tensor:
    """The convolution that `base` is, of another weight and without a bias, whatever its class makes of it."""
    convolved: Tensor = kind_of(base)._conv_forward(base, input, weight, None)
    return convolved


def holds_its_weight(layer: nn.Module) -> bool:
    """Whether what is written into `layer.weight` stays there: a parametrization or a hook makes it anew each time."""
    return isinstance(layer.weight, nn.Parameter) or "weight" in layer._buffers


def follows_its_weight(layer: nn.Module) -> bool:
    """Whether the layer's class computes what torch's own does, with any weight.

    A forward that is the class's own is tried with a drawn weight, without a trace in any global generator. One that
    cannot be tried counts as another: it needs another device, or codes in the place of the weight.
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
    """Raises ValueError for a base whose rows are not what its outputs are made of, so that their norms say nothing."""
    if decoder_of(base) is None and not follows_its_weight(base) and not _multiplies_its_values(base):
        raise ValueError(
            f"{lora_name}: use_dora does not support a {type(base).__name__}, as its forward uses the weight "
            "differently from torch's layer; leave it out with exclude_patterns"
        )


@torch.no_grad()
def _multiplies_its_values(layer: Any) -> bool:
    """Whether a Linear layer of any class multiplies with the values of its weight, a tensor of a class in codes."""
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
    """Torch's transformer blocks that hold one of `layers`, which they do not call in evaluation mode.

    In torch 2.13 a block that sees a hook calls its layers; in 2.4 it does so only if an attribute says that its
    activation is neither ReLU nor GELU. An encoder packs samples of several lengths into one tensor, and a block that
    calls its layers cannot take it, so packing is switched off as well, until no network is in the encoder.
    """

    def __init__(self, root: nn.Module, layers: Collection[nn.Module]) -> None:
        fused = (nn.TransformerEncoderLayer, nn.TransformerEncoder)
        found = (module for module in root.modules() if isinstance(module, fused))
        self.blocks = [block for block in found if any(layer in layers for layer in block.modules())]
        self._hooks: list[tuple[Any, _Seen, RemovableHandle]] = []

    def close(self) -> None:
        """Makes every block call its layers; once only."""
        if self._hooks:
            return
        for block in self.blocks:
            seen = _Seen({name: getattr(block, name, 0) for name in _SWITCHES})
            self._hooks.append((block, seen, block.register_forward_pre_hook(seen)))
            for name in seen.on:
                setattr(block, name, type(seen.on[name])(0))

    def open(self) -> None:
        """Undoes `close`."""
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
    """A hook that does nothing, and the switches that were `on` in its block before."""

    def __init__(self, switches: Mapping[str, int]) -> None:
        self.on = {name: value for name, value in switches.items() if value}

    def __call__(self, block: nn.Module, inputs: Any) -> None:
        pass


def copied(module: Any, adapters: Iterable[Any], memo: dict[int, Any], shared: Iterable[Any] = ()) -> Any:
    """The deep copy of `module`, which has these `adapters`, without their base layers and what is `shared`.

    Part of a larger copy, as `memo` tells, it is one of all: that of a model has the copies of its adapters within, and
    these have the copies of its layers.
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
