"""LoraConfig as PEFT saves it: alpha and scale rule per module, and the settings that change what the tensors mean."""

import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lora_inspect.json_text import parse_json

EMBEDDED_KEY = "lora_adapter_metadata"

# Initialisations that move part of the base into the adapter: the file is a change of the residual base.
# Source: `LoraLayer.reset_lora_parameters` and its callees in PEFT.
RESIDUAL_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Settings under which lora_A and lora_B are not (only) factors of an additive change of the named modules.
FOREIGN_SETTINGS = {
    "use_qalora": "QA-LoRA pools the input of lora_A",
    "use_bdlora": "BD-LoRA makes the factors block-diagonal",
    "kasa_config": "KaSA scales singular components between the factors",
    "arrow_config": "Arrow routes between several adapters",
    "layer_replication": "layer_replication repeats layers of the base",
    "alora_invocation_tokens": "aLoRA acts from an invocation token on",
    "target_parameters": "target_parameters adapts stacked expert weights",
    "trainable_token_indices": "trainable_token_indices replaces rows of the embedding",
    "lora_bias": "lora_bias adds a bias on the up layer",
    "modules_to_save": "modules_to_save replaces whole modules",
    "monteclora_config": "MonteCLoRA samples the factors",
}


def is_peft_config(config: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` is PEFT's (MLX writes one of the same name)."""
    return "peft_type" in config


def embedded_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """LoraConfigs that diffusers embeds, by component prefix ("transformer.", …; "" where it wrote none)."""
    try:
        flat = parse_json(metadata.get(EMBEDDED_KEY, "{}"))
    except ValueError:
        return {}
    if not isinstance(flat, dict):
        return {}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, dot, field = key.rpartition(".")
        configs.setdefault(component + dot, {})[field] = value
    return {prefix: config for prefix, config in configs.items() if "r" in config or "lora_alpha" in config}


def config_rank(config: Mapping[str, Any], path: str) -> int | None:
    """The rank that the config gives the module at the dotted `path`."""
    rank = _pattern_value(config.get("rank_pattern"), path, config.get("r"))
    return rank if isinstance(rank, int) else None


def config_alpha(config: Mapping[str, Any], path: str) -> float | None:
    """The alpha that the config gives the module at the dotted `path`; PEFT's default is 8, None is no number."""
    alpha = _pattern_value(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        return None
    return float(alpha) if abs(alpha) <= sys.float_info.max else None  # JSON spells infinities and longer numbers


def is_target(targets: Any, path: str) -> bool:
    """Whether a config's `target_modules` choose the module at the dotted `path` (`check_target_module_exists`)."""
    if isinstance(targets, str):
        try:
            return targets == "all-linear" or re.fullmatch(targets, path) is not None
        except re.error:
            return False
    return isinstance(targets, list) and any(path == target or path.endswith(f".{target}") for target in targets)


def fan_in_fan_out(config: Mapping[str, Any]) -> bool | None:
    """Whether the config says that weights are stored as (in, out); PEFT's default is no, None is no yes or no."""
    says = config.get("fan_in_fan_out", False)
    return says if isinstance(says, bool) else None


def residual_init(config: Mapping[str, Any]) -> str | None:
    """The initialisation that needs a residual base, or None."""
    init = config.get("init_lora_weights")
    return init if isinstance(init, str) and init.lower().startswith(RESIDUAL_INITS) else None


def foreign_settings(config: Mapping[str, Any]) -> list[str]:
    """What the config says that makes the tensors something else than plain LoRA factors."""
    found = [says for key, says in FOREIGN_SETTINGS.items() if config.get(key) not in (None, False, [], {}, "")]
    bias = config.get("bias")
    return found if bias in (None, "none") else [*found, f"bias is {bias}, so biases of the base were trained too"]


def _pattern_value(pattern: Any, path: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the path at a dot (`get_pattern_key`)."""
    if not isinstance(pattern, dict):
        return default
    for key, value in pattern.items():
        expression = _compiled(key)
        if expression and expression.match(path):
            return value
    return pattern.get(path, default)  # a path is a key even where it does not match itself, as a+b does not


@lru_cache(maxsize=1 << 14)  # a key for each module is usual, and the library's own cache forgets after 512
def _compiled(key: str) -> re.Pattern[str] | None:
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error:
        return None
