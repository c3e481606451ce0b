"""The network module of Stable Diffusion XL."""

from lora_inspect.architectures.families.sdxl import ARCHITECTURE

from .network.architecture_module import functions_of, target_classes

SDXL_TARGET_REPLACE_MODULES = target_classes(ARCHITECTURE)

_functions = functions_of(__name__, ARCHITECTURE)
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
prepare_network = _functions.prepare_network
