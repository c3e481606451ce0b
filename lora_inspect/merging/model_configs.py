"""What the config.json beside a base says of how its weights are stored, and what it is to say of the merged ones."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from lora_inspect.files.base_folder import SideFiles
from lora_inspect.files.json_files import read_json

# Where transformers and diffusers say how the weights of a folder are to be read.
CONFIG = "config.json"
QUANTIZATION = "quantization_config"
# By the method: what lists the modules whose weights are no codes. Source: transformers' quantisation configs.
_LEFT_OUT = {
    "fp8": "modules_to_not_convert",
    "fbgemm_fp8": "modules_to_not_convert",
    "mxfp4": "modules_to_not_convert",
    "bitsandbytes": "llm_int8_skip_modules",
    "compressed-tensors": "ignore",
}
# What the type of the weights is called, by versions of transformers, and how it is spelled there.
_TYPE_KEYS = ("torch_dtype", "dtype")
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_FP8_TYPES = ("float8_e4m3fn", "float8_e5m2")


def read_config(side_files: SideFiles) -> dict[str, Any] | None:
    """The config beside a base; None where there is none, or no JSON object."""
    identity = side_files.copied.get(CONFIG)
    if identity is None:
        return None
    config, _ = read_json(os.path.join(side_files.root, CONFIG), identity)
    return config if isinstance(config, dict) else None


def without_codes(config: Mapping[str, Any], decoded: Collection[str], codes_stay: bool) -> dict[str, Any] | None:
    """The config of a folder of which the modules `decoded` have no codes any more; nothing of codes where none stay.

    None where its method has no known way to say so of a few modules.
    """
    said = config.get(QUANTIZATION)
    if not decoded or said is None:
        return dict(config)
    if not codes_stay:
        return {key: value for key, value in config.items() if key != QUANTIZATION}
    method = said.get("quant_method") if isinstance(said, dict) else None
    key = _LEFT_OUT.get(method) if isinstance(method, str) else None
    known = said.get(key) or [] if key else None
    if not isinstance(known, list):
        return None
    return {**config, QUANTIZATION: {**said, key: [*known, *(name for name in decoded if name not in known)]}}


def with_type(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config with another element type of the weights, wherever it names one; the name is that of safetensors."""
    changed = dict(config)
    for key, value in config.items():
        if key in _TYPE_KEYS and _is_type(value):
            changed[key] = _TYPES[dtype]
        elif isinstance(value, dict) and key.endswith("_config") and key != QUANTIZATION:
            changed[key] = with_type(value, dtype)
    return changed


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in (*_TYPES.values(), *_FP8_TYPES)
