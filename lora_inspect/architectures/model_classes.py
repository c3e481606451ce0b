"""The classes of language models in transformers: their embeddings, heads, tied weights and modules.

A file does not say which module is an embedding or a head, or whether they share a weight: the class of the model does,
and its config.json names the class. The facts are in `model_classes.json`, which `docs/write_model_classes.py` draws
from the installed transformers and PEFT; the table names their versions. A class outside the table is not known.

Names of the table are those of transformers' modules, with `{}` for each number.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple

# The kinds of modules, as the table calls them.
LINEAR, EMBEDDING, CONVOLUTION, CONV1D = "linear", "embedding", "convolution", "conv1d"
EMBEDDING_WITH_ARGUMENTS, LINEAR_WITH_ARGUMENTS = "embedding_with_arguments", "linear_with_arguments"
EXPERTS, EXPERTS_IN_OUT, PARAMETER = "experts", "experts_in_out", "parameter"

_TABLE = Path(__file__).with_name("model_classes.json")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class TiedWeight(NamedTuple):
    """A weight that repeats another if the config says so.

    `key` is the deciding key of config.json, with a dot where it is in a part of it; None for a class that ties always.
    `default` is its value for a config without the key. A `source` of the same pattern is that of another layer.
    """

    weight: str
    source: str
    key: str | None
    default: bool


class ModelClass(NamedTuple):
    """The facts of a class of models.

    `embedding` and `head` are the modules of the words, None if the class has none. `kinds` gives the kind of each
    module with a matrix by its pattern, `files` the names that a saved file has in place of those of parameters.
    `reroute` gives the parameter to which PEFT turns a target of each name. PEFT raises on the modules `refused`.
    """

    name: str
    model_type: str
    embedding: str | None
    head: str | None
    tied: tuple[TiedWeight, ...]
    is_encoder_decoder: bool
    kinds: Mapping[str, str]
    files: Mapping[str, tuple[str, ...]]
    reroute: Mapping[str, str]
    refused: frozenset[str]

    def kind_of(self, module: str) -> str | None:
        """Return the kind of a module, or of a parameter that stands for itself; None if the class has no such one."""
        return self.kinds.get(as_pattern(module))

    def is_embedding(self, module: str) -> bool:
        """Return True if a module of this name looks up rows of its weight by index."""
        return self.kind_of(module) in (EMBEDDING, EMBEDDING_WITH_ARGUMENTS)

    def tied_to(self, weight: str, config: Mapping[str, Any]) -> str | None:
        """Return the weight that a weight repeats under a config, as the content of config.json; None if it has one."""
        pattern = as_pattern(weight)
        pairs = (pair for pair in self.tied if pair.weight == pattern)
        return next((pair.source for pair in pairs if _is_true(pair, config)), None)

    def sharing(self, name: str, config: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return the weights that repeat the tensor `name` of a saved file, or that it repeats, under a config.

        None for a name that no parameter with a matrix of the class has there. Layers that share weights with other
        layers of the same pattern are not among them.
        """
        pattern = as_pattern(name)
        matrices = (path if path.endswith(".weight") else f"{path}.weight" for path in self.kinds)
        weight = next((path for path in matrices if pattern in self.names_in_file(path)), None)
        if weight is None:
            return None
        pairs = [pair for pair in self.tied if pair.weight != pair.source and _is_true(pair, config)]
        sources = {pair.source for pair in pairs if weight in (pair.weight, pair.source)}
        group = [*sources, *(pair.weight for pair in pairs if pair.source in sources)]
        return tuple(other for other in group if other != weight)

    def names_in_file(self, parameter: str) -> tuple[str, ...]:
        """Return the patterns of the names that a saved file has for a parameter: several if it is split there."""
        pattern = as_pattern(parameter)
        return self.files.get(pattern, (pattern,))


def _is_true(pair: TiedWeight, config: Mapping[str, Any]) -> bool:
    """Return the value that the config, or else the class, gives the key of a tied weight."""
    if pair.key is None:
        return True
    part, _, key = pair.key.rpartition(".")
    section = config.get(part) if part else config
    value = section.get(key, pair.default) if isinstance(section, Mapping) else pair.default
    return bool(value)


def as_pattern(name: str) -> str:
    """Return the name of a module or of a parameter with `{}` for each number."""
    return _NUMBER.sub("{}", name)


def class_of(architectures: Iterable[str], model_type: str | None) -> ModelClass | None:
    """Return the class that a config.json names, or the only class of its type; None if the table cannot tell.

    `architectures` and `model_type` are the values of these keys. Several names of classes name none.
    """
    names = tuple(architectures)
    if names:
        return class_named(names[0]) if len(names) == 1 else None
    if model_type is None:  # as of a diffusion model: the table need not be read
        return None
    of_type = [name for name, entry in _table()["classes"].items() if entry["type"] == model_type]
    return class_named(of_type[0]) if len(of_type) == 1 else None


def class_of_config(config: Mapping[str, Any] | None) -> ModelClass | None:
    """Return the class of the content of a config.json; None if the table cannot tell, or there is no config."""
    if config is None:
        return None
    names, model_type = config.get("architectures") or (), config.get("model_type")
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    return class_of(names, model_type if isinstance(model_type, str) else None)


@cache
def class_named(name: str) -> ModelClass | None:
    """Return the class of this name; None if the table lacks it."""
    entry = _table()["classes"].get(name)
    if entry is None:
        return None
    return ModelClass(
        name,
        entry["type"],
        entry.get("embedding"),
        entry.get("head"),
        tuple(TiedWeight(weight, *values) for weight, values in entry.get("tied", {}).items()),
        entry.get("encoder_decoder", False),
        {pattern: kind for kind, patterns in entry["modules"].items() for pattern in patterns},
        {parameter: tuple(names) for parameter, names in entry.get("files", {}).items()},
        entry.get("reroute", {}),
        frozenset(entry.get("refused", ())),
    )


def versions() -> Mapping[str, str]:
    """Return the versions of the packages that the table was drawn from, by name."""
    return dict(_table()["versions"])


@cache
def _table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_TABLE.read_bytes())
    return content
