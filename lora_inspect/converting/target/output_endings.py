"""What a converted adapter is called, before anything of it is made."""

import os

from lora_inspect import schemes
from lora_inspect.files.outputs import GGUF_ENDING, SAFETENSORS_ENDING
from lora_inspect.reading.adapter import Adapter
from lora_inspect.stores.address import is_remote

# What a scheme without alphas says of a scale where that stands in a config, so that a folder is written.
_IN_CONFIG = ("config", "scale")


def output_ending(adapter: Adapter, asked: str | None) -> str:
    """That of the scheme that was asked for, or of its own ones; empty where the output is a folder."""
    named = [asked] if asked else [module.name.scheme for module in adapter.modules.values()]
    found = [schemes.by_name(name) for name in named]
    if any(scheme.absent_alpha in _IN_CONFIG for scheme in found):
        return ""
    return GGUF_ENDING if any(scheme.alpha_of_all for scheme in found) else SAFETENSORS_ENDING


def output_beside(adapter: Adapter, purpose: str, asked: str | None) -> str:
    """A name beside the input that says what it is for, ending as the scheme that was asked for has it."""
    path = adapter.checkpoint.path
    if is_remote(path):
        path = os.path.basename(path)  # nothing is written where it lies
    path = os.path.normpath(path)
    stem = path if os.path.isdir(path) else os.path.splitext(path)[0]
    return f"{stem}-{purpose}{output_ending(adapter, asked)}"
