"""The model that an adapter's config names as its base: its folder on this machine, or its name on the hub.

PEFT writes `base_model_name_or_path` as the training named the model: "org/name" on the Hugging Face Hub, or a folder.
A base on the disk shows its name by its place in the cache of the hub, or by `_name_or_path` in its config.json:
transformers writes there where it loaded the model from. Two names are compared without the owner, who may have copied
the model, and without the words for the storage of its weights.
"""

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.base.model_config import NAME

NAMED = "base_model_name_or_path"
_OWN = "_name_or_path"
# A name on the hub, and the address of a model there.
_ID = re.compile(r"[\w-][\w.-]*/([\w-][\w.-]*)")
_ADDRESS = re.compile(r"hf://[^/]+/([^/@]+)(?:[/@].*)?", re.DOTALL)
# The beginnings of paths on another machine, for which Windows would ask the network.
_OF_A_NETWORK = ("\\\\", "//")
# Words in names that say how weights are stored, in which program, or whose model it is once more.
_STORAGE = (
    *("2bit", "3bit", "4bit", "5bit", "6bit", "8bit", "fp32", "fp16", "bf16", "fp8", "fp4", "int8", "int4", "nf4"),
    *("mxfp8", "mxfp4", "nvfp4", "w4a16", "w8a8", "awq", "bnb", "exl2", "gptq", "dynamic", "quantized"),
    *("gguf", "hf", "mlx", "safetensors", "meta", "unsloth"),
)
# Folders in which people keep models: behind such a word stands a path, and no name on the hub.
_FOLDERS = ("models", "model", "out", "output", "outputs", "checkpoints", "results", "runs", "data", "work", "tmp")


class _Name(NamedTuple):
    """A model's name, as it is written, and without its owner; `where` says the source of the name."""

    text: str
    model: str
    where: str

    @property
    def words(self) -> list[str]:
        """The words of the name that distinguish the model from others."""
        return [word for word in re.split(r"[-_. ]+", self.model.lower()) if word not in _STORAGE]


def named_folder(config: Mapping[str, Any] | None) -> str | None:
    """Return the local folder that an adapter's config names as its base, if it has a config.json, or None."""
    name = (config or {}).get(NAMED)
    if not isinstance(name, str) or not name or name.startswith(_OF_A_NETWORK):
        return None
    return name if os.path.isfile(os.path.join(name, NAME)) else None


def other_model_note(
    path: str, config: Mapping[str, Any] | None, base: Checkpoint, base_config: Mapping[str, Any] | None
) -> str | None:
    """Return a note if an adapter at `path` and a base are known under the names of two models, or None.

    `config` is the adapter's own config, `base_config` the config.json next to the base.
    """
    ours = _named((config or {}).get(NAMED), "")
    theirs = _name_of(base, base_config)
    if ours is None or theirs is None or ours.words == theirs.words:
        return None
    folder = os.path.basename(os.path.normpath(base.path))
    if _Name(folder, folder, "").words == ours.words:
        return None
    return (
        f"{path}: its config names {ours.text} as its base, but {base.path} is {theirs.text}, {theirs.where}; on "
        "another model its change is not the trained one."
    )


def _name_of(base: Checkpoint, config: Mapping[str, Any] | None) -> _Name | None:
    address = _ADDRESS.fullmatch(base.path)
    model = address[1] if address else _cached(os.path.abspath(base.path))
    if model:
        return _Name(model, model, "by its path")
    return _named((config or {}).get(_OWN), f"by its {NAME}")


def _cached(path: str) -> str | None:
    """Return the model's name from a snapshot path in the cache of the hub, `models--OWNER--NAME`, or None."""
    folders = re.split(r"[/\\]", path)
    for repository, below in pairwise(folders):
        if below == "snapshots" and repository.startswith("models--"):
            return repository.rpartition("--")[2] or None
    return None


def _named(text: Any, where: str) -> _Name | None:
    """Return the name in a config, of a model on the hub or a folder of its cache; other paths give no name."""
    if not isinstance(text, str):
        return None
    if model := _cached(text):
        return _Name(model, model, where)
    found = _ID.fullmatch(text)
    is_path = found is None or os.path.isdir(text) or text.split("/")[0].lower() in _FOLDERS
    return None if is_path or found is None else _Name(text, found[1], where)
