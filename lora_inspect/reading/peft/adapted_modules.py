"""Which modules PEFT adapts by a config: `target_modules`, but for what other fields take away from them.

Source: `check_target_module_exists` of PEFT.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_inspect.reading.peft.match_budget import Steps
from lora_inspect.reading.peft.peft_config import ModuleSettings

# The fields that take modules away.
NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")
# The first number of a path that is no part of a name, as of a block.
# Ten digits are past any block count, and int() of thousands of digits is an error.
_DIGITS = 10
_BLOCK = re.compile(r".*?\.[^.]*\.([0-9]+)\.")


def adapted_modules(config: Mapping[str, Any], steps: Steps) -> Callable[[str], bool | None]:
    """Whether PEFT adapts the module at a dotted path; None where more than the config decides that, or takes too long.

    Which layers "all-linear" means only the model says, and `layers_pattern` is not read here.
    """
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    chosen = ModuleSettings(config, steps)
    excluded = ModuleSettings({"target_modules": config.get("exclude_modules")}, steps)
    named = {name for name in targets if isinstance(name, str)} if isinstance(targets, list) else set()
    wanted = {layer for layer in (layers if isinstance(layers, list) else [layers]) if isinstance(layer, int)}

    def adapts(path: str) -> bool | None:
        if targets == "all-linear" or (layers not in (None, []) and config.get("layers_pattern")):
            return None
        if excluded.is_target(path) or not chosen.is_target(path):
            return None if chosen.refused or excluded.refused else False
        # Paths in full, and expressions, are not asked for their layer.
        if isinstance(targets, str) or layers in (None, []) or path in named:
            return True
        block = _BLOCK.match(path)
        return block is not None and len(block[1]) <= _DIGITS and int(block[1]) in wanted

    return adapts
