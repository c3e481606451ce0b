"""The families and the text encoders that the modules of a file show, by their names and widths."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lora_inspect.algorithms.record import BIAS, WEIGHT, Features
from lora_inspect.architectures import changes
from lora_inspect.architectures.detection import Detection, candidates
from lora_inspect.architectures.record import is_parameter
from lora_inspect.architectures.stated_families import BASE_KEY, CLASS_KEY, STATING_KEYS
from lora_inspect.architectures.text_encoders import TextEncoder, found_in
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.keys.groups import group_equal
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import MODEL, ModuleName

# The second expert of Wan 2.2 is of the same architecture.
_MODELS = (MODEL, "model_2")


def shown_candidates(checkpoint: Checkpoint, scheme: str | None, modules: dict[str, Module]) -> tuple[Detection, ...]:
    """Return every family that a file shows, by its model's modules and by the text encoders that it adapts.

    A GGUF header names it.
    """
    if scheme == GGUF.name:
        from lora_inspect.reading.base.model_config import gguf_families

        return gguf_families(checkpoint)
    said = {**checkpoint.metadata, **(_said_by(checkpoint.config) if scheme == PEFT.name else {})}
    stated = {key: said[key] for key in STATING_KEYS if key in said}
    # Every program asks, and a large file has more modules than `candidates` remembers.
    question = "families", tuple(stated.items()), changes()
    return group_equal(modules).once(question, lambda: _candidates(modules, stated))


def _candidates(modules: dict[str, Module], stated: Mapping[str, str]) -> tuple[Detection, ...]:
    layers = _layers(modules)
    of_model = [(name, features) for name, features in layers if name.component in _MODELS]
    return candidates(
        [(name.body, *features) for name, features in of_model],
        stated,
        encoders={encoder: None for shown in _encoders(layers).values() for encoder in shown},
        prefixes={name.prefix for name, _ in of_model},
    )


def _said_by(config: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the base and its class that a config of PEFT names."""
    mapping = (config or {}).get("auto_mapping")
    told = {
        BASE_KEY: (config or {}).get(BASE_KEY),
        CLASS_KEY: mapping.get(CLASS_KEY) if isinstance(mapping, dict) else None,
    }
    return {key: value for key, value in told.items() if isinstance(value, str)}


def shown_encoders(modules: dict[str, Module]) -> dict[str, tuple[TextEncoder, ...]]:
    """Return the text encoders that the modules of each component show it to be."""
    return _encoders(_layers(modules))


def _encoders(layers: Iterable[tuple[ModuleName, Features]]) -> dict[str, tuple[TextEncoder, ...]]:
    others: dict[str, list[tuple[str, int | None, int | None]]] = defaultdict(list)
    for name, features in layers:
        if name.component not in _MODELS:
            others[name.component].append((name.body, *features))
    return {component: found_in(modules) for component, modules in others.items()}


def _layers(named: dict[str, Module]) -> list[tuple[ModuleName, Features]]:
    """Return the names of the modules that are layers, with their widths, which are computed once per kind."""
    modules = group_equal(named)
    found = [_features(first) if any(map(_is_of_layer, first.contributions)) else None for first in modules.firsts]
    layers: list[tuple[ModuleName, Features]] = []
    for module, kind in zip(modules.values(), modules.likeness.numbers, strict=True):
        features = found[kind]
        if features is not None and not is_parameter(module.name.body):
            layers.append((module.name, features))
    return layers


def _is_of_layer(change: Contribution) -> bool:
    """Return True if it changes a layer in the tables of architectures: matrices and kernels, not norms or heads."""
    algorithm = change.algorithm
    return algorithm.formula is None or (
        algorithm.parameter == WEIGHT and len(change.shape) > 1 and not algorithm.replaces
    )


def _features(module: Module) -> Features:
    """Return (out, in) of the module's weight, if any of its contributions shows them."""
    told = [_features_of(contribution) for contribution in module.contributions]
    out_features = max((out for out, _ in told if out is not None), default=None)
    return out_features, next((columns for _, columns in told if columns is not None), None)


def _features_of(contribution: Contribution) -> Features:
    if contribution.algorithm.formula is None or contribution.algorithm.parameter not in (WEIGHT, BIAS):
        return None, None
    out_features, in_features = contribution.features
    return contribution.rows[1] if contribution.rows else out_features, in_features
