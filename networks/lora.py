"""LoRA for any model, and the network module of HunyuanVideo.

The modules of the other architectures call it.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from lora_inspect.architectures.families.hunyuan_video import ARCHITECTURE

from .modules.dora_layer import DoRALayer
from .modules.lora_module import LoRAModule
from .modules.module_merging import LoRAInfModule
from .network import creation
from .network.architecture_module import functions_of, target_classes
from .network.creation import DEFAULT_RANK, PREFIX
from .network.network import LoRANetwork

__all__ = [
    "DEFAULT_RANK",
    "HUNYUAN_TARGET_REPLACE_MODULES",
    "PREFIX",
    "DoRALayer",
    "LoRAInfModule",
    "LoRAModule",
    "LoRANetwork",
    "create_arch_network",
    "create_arch_network_from_weights",
    "create_network",
    "create_network_from_file",
    "create_network_from_weights",
    "prepare_network",
]

HUNYUAN_TARGET_REPLACE_MODULES = target_classes(ARCHITECTURE)

_functions = functions_of(__name__, ARCHITECTURE)
create_arch_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_file = _functions.create_network_from_file
prepare_network = _functions.prepare_network


def create_network(*args: Any, **kwargs: Any) -> LoRANetwork:
    """Create a network as `create_arch_network` does, with the same order of arguments.

    Trainers that know no `create_arch_network` call this. Network modules of other architectures pass the classes of
    their blocks and the prefix of names before the multiplier: see `creation.create_network`.
    """
    if not _begins_with_classes(args, kwargs):
        return create_arch_network(*args, **kwargs)
    network = creation.create_network(*args, **kwargs)
    network.log_readers()
    return network


def create_network_from_weights(*args: Any, **kwargs: Any) -> Any:
    """Create a network as `create_network_from_file` does, with the same order of arguments.

    If classes of blocks come before the multiplier, it calls `creation.create_network_from_weights`.
    """
    if not _begins_with_classes(args, kwargs):
        return create_network_from_file(*args, **kwargs)
    return creation.create_network_from_weights(*args, **kwargs)


def _begins_with_classes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return True if the first argument is None for the whole model, or class names of blocks, also by its name."""
    return not isinstance(args[0], int | float | nn.Module) if args else "target_replace_modules" in kwargs


# For help and editors, as the arguments have one order in all network modules.
create_network.__signature__ = inspect.signature(create_arch_network)  # type: ignore[attr-defined]
create_network_from_weights.__signature__ = inspect.signature(create_network_from_file)  # type: ignore[attr-defined]
