"""What a trainer does to resume from a file: a network of its weights, which are then loaded."""

import importlib
import json

from safetensors import SafetensorError

# Each network module with what a model of no architecture needs.
MODULES = {
    "lora": {},
    "loha": {"architecture": "hunyuan_video"},
    "lokr": {"architecture": "hunyuan_video"},
    "lora_wan": {},
}
# What such files may be refused with.
_REFUSALS: tuple[type[Exception], ...] = (ValueError, OSError, SafetensorError)
# Torch's own reader of pickles, which runs nothing of them, has no end to its ways of saying that one is damaged.
_OF_PICKLES: tuple[type[Exception], ...] = (Exception,)
# These are ValueErrors, too, but say nothing of what to do.
_NO_REFUSALS = (json.JSONDecodeError, UnicodeError)


def load(module: str, file: str) -> int:
    """0 where the file is loaded, 1 where it is refused; what is no refusal is raised."""
    from fuzz.toy_model import toy_model

    model = toy_model()
    refusals = _REFUSALS if file.endswith(".safetensors") else _OF_PICKLES
    try:
        functions = importlib.import_module(f"networks.{module}")
        network, _ = functions.create_network_from_weights(1.0, file, None, None, model, **MODULES[module])
        network.apply_to(None, model)
        network.load_weights(file)
    except _NO_REFUSALS:
        raise
    except refusals:
        return 1
    return 0
