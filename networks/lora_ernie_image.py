"""The network module of ERNIE-Image."""

from lora_inspect.architectures.families.ernie_image import ARCHITECTURE

from .network.architecture_module import functions_of, target_classes

ERNIE_IMAGE_TARGET_REPLACE_MODULES = target_classes(ARCHITECTURE)

_functions = functions_of(__name__, ARCHITECTURE)
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
prepare_network = _functions.prepare_network
