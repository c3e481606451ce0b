"""Which layers can be adapted at all, and why each other one cannot."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..modules.base_forward import CONVOLUTIONS, KINDS, follows_its_weight, kind_of

# A trainer's replacement for one of torch's layers may have its name without being one.
_NAMES = ("Linear", "Conv1d", "Conv2d", "Conv3d")
_UNCALLED = "MultiheadAttention computes with its weight and does not call it"


def named_leaves(root: nn.Module, classes: Sequence[str] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """(dotted path, layer) of each Linear and convolution inside a block whose class name is in `classes`, each once.

    Those that cannot be adapted are among them.
    """
    seen: set[nn.Module] = set()
    for path, block in root.named_modules():
        if classes is not None and class_name(block) not in classes:
            continue
        for leaf_path, leaf in block.named_modules(prefix=path):
            if _is_leaf(leaf) and leaf not in seen:
                seen.add(leaf)
                yield leaf_path, leaf
        if classes is None:
            return


def class_name(module: nn.Module) -> str:
    """The name of the module's class, without what FSDP2's fully_shard puts in front of it."""
    name = type(module).__name__
    return name.removeprefix("FSDP") if hasattr(module, "unshard") else name


def obstacles(root: nn.Module, leaves: Mapping[str, nn.Module]) -> dict[str, str]:
    """Why those of the `leaves` of a model that cannot be adapted cannot, by path."""
    uncalled = {module.out_proj for module in root.modules() if isinstance(module, nn.MultiheadAttention)}
    found = {path: _UNCALLED if leaf in uncalled else _obstacle(leaf) for path, leaf in leaves.items()}
    return {path: f"its class is {class_name(leaves[path])}, and {reason}" for path, reason in found.items() if reason}


def others(root: nn.Module, leaves: Mapping[str, nn.Module], classes: Sequence[str] | None) -> dict[str, str]:
    """Why each module of the model is not adapted that has tensors of its own and is none of the `leaves`, by path."""
    known = set(leaves.values())
    outside = f"it is in no block of the classes that are adapted, {', '.join(classes or ())}"
    return {
        path: outside if _is_leaf(module) else f"its class {class_name(module)} is no Linear layer and no convolution"
        for path, module in root.named_modules()
        if module not in known and _has_tensors(module)
    }


def _is_leaf(module: nn.Module) -> bool:
    return isinstance(module, KINDS) or class_name(module) in _NAMES


def _has_tensors(module: nn.Module) -> bool:
    stored = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    return any(tensor is not None for tensor in module._parameters.values()) or bool(stored)


def _obstacle(layer: Any) -> str | None:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return "it has no weight"
    if is_lazy(weight):
        return "its sizes are not known before its first input"
    if not weight.is_floating_point():
        return f"its weight is stored as {str(weight.dtype).removeprefix('torch.')}"
    kind = kind_of(layer)
    if kind is None and not hasattr(layer, "in_features"):
        return "it has the name of a layer of torch without being one"
    if (sizes := _sizes(layer)) != list(weight.shape):
        return f"its weight has the shape {list(weight.shape)} instead of {sizes}"
    if kind in CONVOLUTIONS and not follows_its_weight(layer):
        return "its forward is not the convolution that its settings say"
    return None


def _sizes(layer: Any) -> list[int]:
    """The shape of the weight by the layer's own settings."""
    if hasattr(layer, "in_features"):
        return [layer.out_features, layer.in_features]
    return [layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size]
