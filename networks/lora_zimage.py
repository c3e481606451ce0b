"""The network module of Z-Image. Option: `include_refiner`, False by default, adapts the refiner blocks too."""

from lora_inspect.architectures.families.z_image import ARCHITECTURE

from .network.architecture_module import functions_of, target_classes

ZIMAGE_TARGET_REPLACE_MODULES = target_classes(ARCHITECTURE)

_functions = functions_of(__name__, ARCHITECTURE)
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
prepare_network = _functions.prepare_network
