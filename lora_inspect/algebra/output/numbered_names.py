"""Layers whose names are numbers, as in files of cloneofsimo's lora: `unet:17:up` and `unet:17:down`.

The metadata of such a file have the classes of each model's layers, `unet`, and the rank of each layer,
`unet:17:rank`. Its program stops without them, and a number means a layer only among all layers of these classes.
Source: `parse_safeloras` in lora_diffusion/lora.py of cloneofsimo's lora.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from lora_inspect.errors import RefusedError
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.numbered_layers import classes_of
from lora_inspect.schemes.cloneofsimo import CLONEOFSIMO

_OTHER_NAMES = "choose other names, for instance with --to kohya"


def numbered_layers(adapter: Adapter) -> dict[str, str]:
    """Return the layer, such as `unet:17`, of each module whose name is a number, by the module's key."""
    return {
        contribution.module.key: layer_of(next(iter(contribution.factors.values())).name)
        for contribution in adapter.contributions
        if contribution.module.scheme == CLONEOFSIMO.name
    }


def layer_of(key: str) -> str:
    """Return the layer of a factor: `unet:17` of `unet:17:up`."""
    return key.rpartition(":")[0]


def numbered_metadata(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> dict[str, str]:
    """Return the metadata that layers such as `unet:17` need, by their `ranks` in an output; none without layers."""
    metadata = {f"{layer}:rank": str(rank) for layer, rank in ranks.items()}
    for model in _by_model(ranks):
        texts = _class_lists(adapters, model)
        if texts:
            metadata[model] = texts[0]
    return metadata


def check_numbered_layers(adapters: Sequence[Adapter], layers: Iterable[str]) -> None:
    """Check that the `layers` of an output, such as `unet:17`, mean the same as in the adapters.

    Raises LoraInspectError if a model lacks a layer, or has layers of several lists of classes.
    """
    for model, written in _by_model(layers).items():
        for adapter in adapters:
            own = _by_model(numbered_layers(adapter).values()).get(model, written)
            if own != written:
                raise RefusedError(
                    adapter.checkpoint.path,
                    f"its keys number the layers of {model}, {len(own)} of them, and the output would have "
                    f"{len(written)}, so that its numbers would mean other layers",
                    _OTHER_NAMES,
                )
        if len({frozenset(classes_of(text)) for text in _class_lists(adapters, model)}) > 1:
            raise RefusedError(
                adapters[0].checkpoint.path,
                f"its keys number the layers of {model}, and the keys of another input number those of other classes",
                _OTHER_NAMES,
            )


def _class_lists(adapters: Sequence[Adapter], model: str) -> list[str]:
    """Return the classes of a model's layers as the metadata of each adapter have them, if they do."""
    return [adapter.checkpoint.metadata[model] for adapter in adapters if model in adapter.checkpoint.metadata]


def _by_model(layers: Iterable[str]) -> dict[str, set[str]]:
    by_model: dict[str, set[str]] = defaultdict(set)
    for layer in layers:
        by_model[layer.partition(":")[0]].add(layer)
    return by_model
