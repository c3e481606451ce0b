"""PEFT: a folder with its config, which says of every module whether it is adapted, its rank and its scale.

Modules that the config does not choose are passed over without a word, and so is whatever else is in the file.
Sources: `PeftModel.from_pretrained`, `set_peft_model_state_dict` and `check_target_module_exists` of PEFT.
"""

import re

from lora_inspect.consumers.peft_folders import config_of, names_in, settings_of
from lora_inspect.consumers.record import (
    COMPUTES,
    INFIXED,
    SILENT,
    WARNS,
    Consumer,
    Finder,
    Given,
    Loader,
    Rule,
    Strangers,
    as_meant,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.peft_config import ModuleSettings
from lora_inspect.reading.steps import Steps

# Embeddings of single tokens, which no target_modules choose.
_TOKENS = ("lora_tokens", "trainable_tokens")
_LORA = ("lora", "lora_bias", "lora_embedding")
_OTHERS = ("ia3", "peft_oft", "vera")
# The first number of a path that is no part of a name, as of a block.
_BLOCK = re.compile(r".*?\.[^.]*\.([0-9]+)\.")


def _refused(adapter: Adapter) -> str | None:
    """What `from_pretrained` raises, before it has a model to compare with."""
    config = config_of(adapter)
    if isinstance(config, str):
        return config
    if "peft_type" not in config:
        return "KeyError: 'peft_type'"
    settings = settings_of(adapter)
    for contribution in adapter.contributions:
        rank = contribution.rank
        if contribution.algorithm.name in _LORA and rank and settings.rank(contribution.module.body) != rank:
            return f"RuntimeError: size mismatch for {contribution.module.key}, as the config gives it another rank"
    return None


def _finds(adapter: Adapter) -> Finder:
    """The modules that `target_modules`, `exclude_modules` and `layers_to_transform` choose together."""
    config = config_of(adapter)
    if isinstance(config, str):
        return lambda given: False
    targets, steps = config.get("target_modules"), Steps()
    chosen = ModuleSettings(config, steps)
    excluded = ModuleSettings({"target_modules": config.get("exclude_modules")}, steps)
    layers, named = config.get("layers_to_transform"), names_in(config, "target_modules")
    wanted = {layer for layer in (layers if isinstance(layers, list) else [layers]) if isinstance(layer, int)}

    def finds(given: Given) -> bool | None:
        path = given.module.name.body
        if given.contribution.algorithm.name in _TOKENS:
            return True
        # Which of the layers are Linear, and which one the head is, only the model says.
        if targets == "all-linear" or (layers not in (None, []) and config.get("layers_pattern")):
            return None
        if excluded.is_target(path) or not chosen.is_target(path):
            return None if chosen.refused or excluded.refused else False
        if isinstance(targets, str) or layers in (None, []) or path in named:
            return True
        block = _BLOCK.match(path)
        return block is not None and int(block[1]) in wanted

    return finds


_FILE = Rule(
    prefixes=("base_model.model.",),
    dialects=("peft", INFIXED),
    kinds=dict.fromkeys((*_LORA, *_TOKENS, *_OTHERS), COMPUTES),
    finds=_finds,
    scale=as_meant,
    magnitudes={".lora_magnitude_vector output": COMPUTES},
    residual=True,
)

CONSUMER = Consumer(
    name="peft",
    title="PEFT",
    version="0.21.2",
    loaders=(
        Loader(
            rules=(
                _FILE,
                _FILE._replace(dialects=("lycoris",), kinds={"loha": COMPUTES, "lokr": COMPUTES}),
                # What is saved whole has no suffix of its own.
                Rule(prefixes=_FILE.prefixes, kinds={"saved": COMPUTES}),
                Rule(unfound=Strangers(WARNS, "Found missing adapter keys while loading the checkpoint")),
            ),
            strangers=Strangers(SILENT),
            refuses=_refused,
        ),
    ),
    schemes={"": "peft"},
)
