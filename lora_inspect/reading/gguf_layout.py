"""What the modules of a GGUF adapter are in the layout of transformers, by the names that its header chooses."""

import os
from collections.abc import Iterable
from typing import Any

from lora_inspect.architectures import by_name
from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.gguf import GGUF_NAMES, GgufNames, Heads
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint, read_json
from lora_inspect.files.gguf_format import ARCHITECTURE_KEY
from lora_inspect.listing import listed
from lora_inspect.reading.contribution import Module

_CONFIG = "config.json"
# No attention has more heads than six digits count.
_MOST_HEADS = 10**6


def gguf_families(checkpoint: Checkpoint) -> tuple[Detection, ...]:
    """The family that the header names; empty where it is not known here."""
    named = checkpoint.metadata.get(ARCHITECTURE_KEY, "")
    names = GGUF_NAMES.get(named)
    if names is None:
        return ()
    says = f"{ARCHITECTURE_KEY} is {named}, which has modules of {by_name(names.family).title}"
    return (Detection(by_name(names.family), names.layout, None, says),)


def gguf_correspondence(checkpoint: Checkpoint, modules: Iterable[Module], base: Checkpoint | None) -> Correspondence:
    """How the modules of an adapter are called in transformers, and where their rows are there.

    Raises LoraInspectError for a `general.architecture` that is not known here, and where the order of rows depends on
    the number of heads and no `config.json` beside the base says it.
    """
    names = gguf_names(checkpoint)
    arranged = [module for module in modules if module.name.body.rpartition(".")[2] in names.arranged_names]
    heads = _heads(base) if base is not None and arranged else None
    if arranged and heads is None:
        where = "beside the base" if base is None else f"beside {base.path}"
        raise LoraInspectError(
            f"{checkpoint.path}: llama.cpp has the rows of {arranged[0].name.key} in another order than transformers, "
            f"which depends on the number of heads; put the model's {_CONFIG} {where}, which says it."
        )
    return Correspondence(lambda: names.relations(heads))


def gguf_names(checkpoint: Checkpoint) -> GgufNames:
    """The names that the header chooses; raises LoraInspectError where they are not known here."""
    named = checkpoint.metadata.get(ARCHITECTURE_KEY, "")
    if named not in GGUF_NAMES:
        raise LoraInspectError(
            f"{checkpoint.path}: its {ARCHITECTURE_KEY} is {named or 'missing'}, whose names are not known here; known "
            f"are {listed(sorted(GGUF_NAMES), 'and')}. Use the PEFT adapter that it was made from."
        )
    return GGUF_NAMES[named]


def _heads(base: Checkpoint) -> Heads | None:
    """What the model's config beside the base says."""
    folder = os.path.dirname(base.files[0]) if base.files else base.path
    path = os.path.join(folder, _CONFIG)
    if not os.path.lexists(path):
        return None
    config, _ = read_json(path)
    text = config.get("text_config") if isinstance(config, dict) else None
    config = text if isinstance(text, dict) else config
    if not isinstance(config, dict):
        return None
    query = _count(config.get("num_attention_heads"))
    key_value = query if config.get("num_key_value_heads") is None else _count(config["num_key_value_heads"])
    return Heads(query, key_value) if query and key_value else None


def _count(number: Any) -> int | None:
    return number if type(number) is int and 0 < number < _MOST_HEADS else None
