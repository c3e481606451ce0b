"""What the `config.json` of a model of transformers says of it: its kind, and the heads of its attention."""

import os
from collections.abc import Mapping
from typing import Any

from lora_inspect.architectures.gguf import Heads
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.json_files import read_json
from lora_inspect.files.locations import exists, is_file, is_folder, join

NAME = "config.json"
# No attention has more heads than six digits count.
_MOST_HEADS = 10**6


class ModelConfig(NamedTuple):
    """The `model_type` of a model and of its language part, as far as they are there, and its heads, None for none."""

    path: str
    kinds: tuple[str, ...]
    heads: Heads | None


def read_model_config(path: str) -> ModelConfig:
    """The config at `path`, or in the folder there; raises LoraInspectError where there is none."""
    file = join(path, NAME) if is_folder(path) else path
    if not is_file(file):
        raise LoraInspectError(f"{path}: there is no {NAME} of a model; name it, or the folder that it is in.")
    config, _ = read_json(file)
    if not isinstance(config, dict):
        raise LoraInspectError(f"{file}: it is JSON but not an object; fetch the model's {NAME} again.")
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    kinds = (one.get("model_type") for one in (config, text))
    return ModelConfig(file, tuple(dict.fromkeys(kind for kind in kinds if isinstance(kind, str))), _heads(text))


def config_beside(base: Checkpoint) -> ModelConfig | None:
    """The config that stands beside the weights of a base, None for none."""
    folder = os.path.dirname(base.files[0]) if base.files else base.path
    path = join(folder, NAME)
    return read_model_config(path) if exists(path) else None


def _heads(config: Mapping[str, Any]) -> Heads | None:
    query = _count(config.get("num_attention_heads"))
    key_value = query if config.get("num_key_value_heads") is None else _count(config["num_key_value_heads"])
    return Heads(query, key_value) if query and key_value else None


def _count(number: Any) -> int | None:
    return number if type(number) is int and 0 < number < _MOST_HEADS else None
