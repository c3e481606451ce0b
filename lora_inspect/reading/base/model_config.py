"""The `config.json` of a model of transformers: its kind, and the heads of its attention.

With it, the modules of a GGUF adapter get their names in the layout of transformers, by the map that its header names.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from lora_inspect.architectures import by_name
from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.gguf import GGUF_NAMES, GgufNames, Heads
from lora_inspect.errors import DamagedError, NotFoundError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.gguf.gguf_format import ARCHITECTURE_KEY, TYPE_KEY
from lora_inspect.files.json_files import read_json
from lora_inspect.files.locations import exists, is_file, is_folder, join
from lora_inspect.reading.model.contribution import Module
from lora_inspect.sentences import listed

NAME = "config.json"
# No attention has more heads than six digits count.
_MOST_HEADS = 10**6
_TIES = "tie_word_embeddings"


class ModelConfig(NamedTuple):
    """The `model_type` of a model and of its language part, if present, and its heads, or None.

    `classes` are transformers' names of the model's class. `ties` says whether the head uses the weight of the
    embedding, None if the config leaves it to the class.
    """

    path: str
    kinds: tuple[str, ...]
    heads: Heads | None
    classes: tuple[str, ...] = ()
    ties: bool | None = None


def read_model_config(path: str) -> ModelConfig:
    """Return the config at `path`, or in the folder there. Raises LoraInspectError if there is none."""
    file = join(path, NAME) if is_folder(path) else path
    if not is_file(file):
        raise NotFoundError(path, f"the {NAME} of the model does not exist", "name it, or its folder")
    config, _ = read_json(file)
    if not isinstance(config, dict):
        raise DamagedError(file, "it is JSON but not an object", f"fetch the model's {NAME} again")
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    kinds = (one.get("model_type") for one in (config, text))
    named = tuple(dict.fromkeys(kind for kind in kinds if isinstance(kind, str)))
    classes = config.get("architectures")
    strings = tuple(one for one in classes if isinstance(one, str)) if isinstance(classes, list) else ()
    ties = config.get(_TIES, text.get(_TIES))
    return ModelConfig(file, named, _heads(text), strings, ties if isinstance(ties, bool) else None)


def config_beside(base: Checkpoint) -> ModelConfig | None:
    """Return the config next to the weights of a base, or None."""
    folder = os.path.dirname(base.files[0]) if base.files else base.path
    path = join(folder, NAME)
    return read_model_config(path) if exists(path) else None


def _heads(config: Mapping[str, Any]) -> Heads | None:
    query = _count(config.get("num_attention_heads"))
    key_value = query if config.get("num_key_value_heads") is None else _count(config["num_key_value_heads"])
    return Heads(query, key_value) if query and key_value else None


def _count(number: Any) -> int | None:
    return number if type(number) is int and 0 < number < _MOST_HEADS else None


def has_header(checkpoint: Checkpoint) -> bool:
    """Return True for a file of llama.cpp, and False for a safetensors file with its names."""
    return TYPE_KEY in checkpoint.metadata


def gguf_families(checkpoint: Checkpoint) -> tuple[Detection, ...]:
    """Return the family that the header names; empty if it is unknown."""
    named = checkpoint.metadata.get(ARCHITECTURE_KEY, "")
    names = GGUF_NAMES.get(named)
    if names is None:
        return ()
    says = f"{ARCHITECTURE_KEY} is {named}, which has modules of {by_name(names.family).title}"
    return (Detection(by_name(names.family), names.layout, None, says),)


def gguf_correspondence(checkpoint: Checkpoint, modules: Iterable[Module], base: Checkpoint) -> Correspondence:
    """Return the correspondence of an adapter's modules to the base: their names and the places of their rows.

    Raises LoraInspectError for an unknown `general.architecture`, and if the order of rows depends on the number of
    heads but no `config.json` next to the base gives it.
    """
    names = gguf_names(checkpoint)
    arranged = next((module.name.key for module in modules if names.is_arranged(module.name.body)), None)
    config = config_beside(base) if arranged else None
    heads = config and config.heads
    if arranged and heads is None:
        raise RefusedError(
            checkpoint.path,
            f"llama.cpp orders the rows of {arranged} by the number of heads, unlike transformers",
            f"put the model's {NAME}, which holds that number, next to {base.path}",
        )
    return Correspondence(lambda: names.relations(heads))


def gguf_names(checkpoint: Checkpoint) -> GgufNames:
    """Return the names that the header chooses. Raises LoraInspectError if they are unknown."""
    named = checkpoint.metadata.get(ARCHITECTURE_KEY, "")
    if named not in GGUF_NAMES:
        raise RefusedError(
            checkpoint.path,
            f"its {ARCHITECTURE_KEY} is {named or 'missing'}, and lora-inspect knows only "
            f"{listed(sorted(GGUF_NAMES), 'and')}",
            "use the PEFT adapter that it was made from",
        )
    return GGUF_NAMES[named]
