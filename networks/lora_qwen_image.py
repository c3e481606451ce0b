"""The network module of Qwen-Image. Option: `exclude_mod`, True by default, leaves the modulation layers out."""

from lora_inspect.architectures.families.qwen_image import ARCHITECTURE

from .network.architecture_module import functions_of, target_classes

QWEN_IMAGE_TARGET_REPLACE_MODULES = target_classes(ARCHITECTURE)

_functions = functions_of(__name__, ARCHITECTURE)
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
prepare_network = _functions.prepare_network
