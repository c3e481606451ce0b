"""What a trainer does to resume from a file: a network of its weights, which are then loaded."""

import importlib
import json
import os

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
# These are ValueErrors, too, but say nothing of what to do.
_NO_REFUSALS = (json.JSONDecodeError, UnicodeError)


def load(module: str, file: str) -> int:
    """0 where the file is loaded, 1 where it is refused; what is no refusal is raised."""
    from fuzz.toy_model import toy_model

    if _is_damaged_pickle(file):
        return 1
    model = toy_model()
    try:
        functions = importlib.import_module(f"networks.{module}")
        network, _ = functions.create_network_from_weights(1.0, file, None, None, model, **MODULES[module])
        network.apply_to(None, model)
        network.load_weights(file)
    except _NO_REFUSALS:
        raise
    except _REFUSALS:
        return 1
    return 0


def _is_damaged_pickle(file: str) -> bool:
    """Whether torch's own reader, which runs nothing of a pickle, refuses one; it has many ways of saying so."""
    import torch

    if file.endswith(".safetensors") or not os.path.isfile(file):
        return False
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception:
        return True
    return False
