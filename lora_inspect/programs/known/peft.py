"""PEFT: a folder with a config that gives each module's target, rank and scale.

Modules that the config does not choose are ignored silently, and so are all other keys. `peft_experts` has the rules
for mixtures of experts. The programs that serve language models look for the same folders.

Sources: `PeftModel.from_pretrained`, `set_peft_model_state_dict` and `check_target_module_exists` of PEFT.
"""

import os
from collections.abc import Mapping
from typing import Any

from lora_inspect.architectures import by_name
from lora_inspect.architectures.patterns import layout_patterns, pattern_of
from lora_inspect.files.discovery import ADAPTER_CONFIG, PEFT_WEIGHTS
from lora_inspect.programs.known.peft_experts import FusedExperts
from lora_inspect.programs.record import (
    COMPUTES,
    HIDING,
    INFIXED,
    SILENT,
    WARNS,
    Finder,
    Given,
    Loader,
    Program,
    Rule,
    ScaleOfFile,
    ScaleRule,
    Strangers,
    intended_scale,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.peft.peft_config import ModuleSettings
from lora_inspect.reading.peft.regex import Steps

# The layers of a block that every program which serves models of the Llama line adapts, fused ones of Phi-3 included.
OF_BLOCKS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj")
_WEIGHTS = f"{PEFT_WEIGHTS}.safetensors"


def config_of(adapter: Adapter) -> Mapping[str, Any] | str:
    """Return the config next to the weights, or a message if the folder is another."""
    checkpoint = adapter.checkpoint
    if checkpoint.config is None:
        return f"it finds no {ADAPTER_CONFIG} next to the tensors"
    if [os.path.basename(file) for file in checkpoint.files] != [_WEIGHTS]:
        return f"it finds no {_WEIGHTS}"
    return checkpoint.config


def settings_of(adapter: Adapter) -> ModuleSettings:
    """Return the config's settings of single modules, empty without a config."""
    config = config_of(adapter)
    return ModuleSettings({} if isinstance(config, str) else config, Steps())


def names_in(config: Mapping[str, Any], field: str) -> frozenset[str]:
    """Return the names in a list of the config, none if the field is no list."""
    found = config.get(field)
    return frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()


def leaf_of(path: str) -> str:
    """Return the layer's own name: the end of its path."""
    return path.rpartition(".")[2]


def is_of_blocks(path: str) -> bool:
    """Return True for a dense layer of a block, but not of an expert."""
    return ".experts." not in f".{path}." and leaf_of(path) in OF_BLOCKS


# Embeddings of single tokens, which no target_modules choose.
_TOKENS = ("lora_tokens", "trainable_tokens")
_LORA = ("lora", "lora_bias", "lora_embedding")
_HELD = ("lora_experts", "saved", "lora", "lora_bias")
_OTHERS = ("ia3", "peft_oft", "vera")


def _refused(adapter: Adapter) -> str | None:
    """Return the error of `from_pretrained` before it compares with a model."""
    config = config_of(adapter)
    if isinstance(config, str):
        return config
    if "peft_type" not in config:
        return "KeyError: 'peft_type'"
    settings, experts = settings_of(adapter), FusedExperts(adapter, config)
    for contribution in adapter.contributions:
        rank, path = contribution.rank, contribution.config_path
        if contribution.algorithm.name not in _LORA or not rank or experts.has(path):
            continue
        if settings.rank(path) != rank:
            return f"RuntimeError: size mismatch for {contribution.module.key}, as the config gives it another rank"
    return experts.refused()


def _obstacle(adapter: Adapter) -> str | None:
    """Return the reason why PEFT loads not all of a mixture of experts, whatever its config says."""
    return FusedExperts(adapter, {}).obstacle()


def _finds(adapter: Adapter) -> Finder:
    """Return a finder of the modules that the config chooses."""
    config = config_of(adapter)
    if isinstance(config, str):
        return lambda given: False
    from lora_inspect.reading.peft.peft_config import adapted_modules

    adapts, settings = adapted_modules(config, Steps()), settings_of(adapter)
    experts = FusedExperts(adapter, config)

    def finds(given: Given) -> bool | None:
        path = given.contribution.config_path
        if given.contribution.algorithm.name in (*_TOKENS, *_HELD[:2]) or settings.is_parameter(path):
            return True
        return experts.finds(path) if experts.covers(path) else adapts(path)

    return finds


def _scale(adapter: Adapter) -> ScaleRule:
    """Return the scale that the file means, but for layers of parameters that of the parameter."""
    config = config_of(adapter)
    if isinstance(config, str):
        return intended_scale
    experts = FusedExperts(adapter, config)
    if not experts:
        return intended_scale

    def scale(given: Given) -> float | None:
        path = given.contribution.config_path
        return experts.scale(path) if experts.has(path) else given.contribution.scale

    return scale


def replaced_weight(adapter: Adapter) -> str | None:
    """Return the effect of a tensor that replaces a weight of the model, as a reason for an unknown result.

    It has the name of a weight without an adapter. PEFT loads it in the weight's place; other programs may leave it.
    """
    prefix = _FILE.prefixes[0]
    for key in adapter.unclaimed:
        path, _, parameter = key.removeprefix(prefix).rpartition(".")
        layouts = by_name("llm").layouts
        # The family has no list of its norms, all of which are called so.
        is_known = "norm" in leaf_of(path) or any(
            pattern_of(path, ".") in layout_patterns(one.named, ".") for one in layouts
        )
        is_of_model = is_known and key.startswith(prefix + path) and prefix + path not in adapter.modules
        if is_of_model and parameter in ("weight", "bias"):
            return f"the effect of {key}, which replaces that of the model,"
    return None


_FILE = Rule(
    prefixes=("base_model.model.",),
    dialects=("peft", INFIXED),
    kinds=dict.fromkeys((*_LORA, *_TOKENS, *_OTHERS), COMPUTES),
    finds=_finds,
    scale=ScaleOfFile(_scale),
    magnitudes={".lora_magnitude_vector output": COMPUTES, ".lora_magnitude_vector.weight output": COMPUTES},
    residual=True,
)

PROGRAM = Program(
    name="peft",
    title="PEFT",
    version="0.21.2",
    ran="2026-11-26",
    distributions={"peft": "0.21.2"},
    sets_multiplier=False,
    loaders=(
        Loader(
            rules=(
                _FILE,
                _FILE._replace(dialects=("lycoris",), kinds={"loha": COMPUTES, "lokr": COMPUTES}),
                # Factors of parameters stand under the layer that holds them, and those of layers in it below that.
                _FILE._replace(dialects=(HIDING,), kinds=dict.fromkeys(_HELD, COMPUTES)),
                # What is saved whole has no suffix of its own.
                Rule(prefixes=_FILE.prefixes, kinds={"saved": COMPUTES}),
                Rule(unfound=Strangers(WARNS, "Found missing adapter keys while loading the checkpoint")),
            ),
            strangers=Strangers(SILENT),
            refuses=_refused,
            never=_obstacle,
            unsure=replaced_weight,
        ),
    ),
    schemes={"": "peft"},
)
