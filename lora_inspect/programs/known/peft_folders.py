"""The folders that PEFT saves, as the programs that serve language models look for them."""

import os
from collections.abc import Mapping
from typing import Any

from lora_inspect.files.discovery import ADAPTER_CONFIG, PEFT_WEIGHTS
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.peft.match_budget import Steps
from lora_inspect.reading.peft.peft_config import ModuleSettings

# The layers of a block that every program which serves models of the Llama line adapts, fused ones of Phi-3 included.
OF_BLOCKS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj")
_WEIGHTS = f"{PEFT_WEIGHTS}.safetensors"


def config_of(adapter: Adapter) -> Mapping[str, Any] | str:
    """The config beside the weights; a sentence on what such a program says where the file is no such folder."""
    checkpoint = adapter.checkpoint
    if checkpoint.config is None:
        return f"it finds no {ADAPTER_CONFIG} beside the tensors"
    if [os.path.basename(file) for file in checkpoint.files] != [_WEIGHTS]:
        return f"it finds no {_WEIGHTS}"
    return checkpoint.config


def settings_of(adapter: Adapter) -> ModuleSettings:
    """What the config says of single modules; nothing where there is none."""
    config = config_of(adapter)
    return ModuleSettings({} if isinstance(config, str) else config, Steps())


def names_in(config: Mapping[str, Any], field: str) -> frozenset[str]:
    """The names that a list of the config holds; none where it is no list."""
    found = config.get(field)
    return frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()


def leaf_of(path: str) -> str:
    """The layer's own name: the end of its path."""
    return path.rpartition(".")[2]


def is_of_blocks(path: str) -> bool:
    """Whether the path is one of a block's dense layers, that of an expert not among them."""
    return ".experts." not in f".{path}." and leaf_of(path) in OF_BLOCKS
