"""LoRA for any model, and as the network module of HunyuanVideo; the other architectures' modules call it."""

from typing import Any

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
    """`creation.create_network`, or `create_arch_network` where the multiplier comes first.

    Trainers that know no `create_arch_network` call their network module's `create_network` in that way, and network
    modules of other architectures call it with the classes of their blocks first.
    """
    if _begins_with_multiplier(args):
        return create_arch_network(*args, **kwargs)
    network = creation.create_network(*args, **kwargs)
    network.log_readers()
    return network


def create_network_from_weights(*args: Any, **kwargs: Any) -> Any:
    """`creation.create_network_from_weights`, or `create_network_from_file` where the multiplier comes first."""
    if _begins_with_multiplier(args):
        return create_network_from_file(*args, **kwargs)
    return creation.create_network_from_weights(*args, **kwargs)


def _begins_with_multiplier(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], int | float)
