"""The network module of HiDream-O1.

The trainer sets the task, t2i or i2i, as `hidream_o1_task` on the model. The adapted layers depend on it.
"""

from lora_inspect.architectures.families import hidream_o1
from lora_inspect.architectures.families.hidream_o1 import ARCHITECTURE

from .network.architecture_module import functions_of, target_classes

HIDREAM_O1_T2I_TARGET_REPLACE_MODULES = list(hidream_o1.TEXT_TO_IMAGE)
HIDREAM_O1_I2I_TARGET_REPLACE_MODULES = list(hidream_o1.IMAGE_TO_IMAGE)
HIDREAM_O1_TARGET_REPLACE_MODULES = target_classes(ARCHITECTURE)

_functions = functions_of(__name__, ARCHITECTURE)
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
prepare_network = _functions.prepare_network
