"""sd-scripts' options for layers: by block, by kind, and by expressions for their names.

The table of options by layers is `lora_inspect.reading.scale.requested_rank.NETWORKS`, since the reading of files uses
it too.
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from lora_inspect.architectures.record import Architecture, Training
from lora_inspect.reading.scale.requested_rank import NETWORKS, RankOptions

from ..files.file_names import module_name
from ..network_args import (
    NO_VALUES,
    LayerValues,
    NetworkArguments,
    NetworkOption,
    read_count,
    read_reg_alphas,
    read_reg_dims,
    read_reg_lrs,
)
from . import unet_blocks
from .creation import PREFIX
from .targets import EncoderTargets, has_kernel, named_leaves
from .unet_blocks import UNETS

logger = logging.getLogger(__name__)

_REG_DIMS, _REG_ALPHAS, _REG_LRS = "network_reg_dims", "network_reg_alphas", "network_reg_lrs"
_TRAIN_BLOCKS = "train_blocks"
_ALL, _NONE = "all", "none"
# The options of learning rates, which count for networks of files too, and those of alphas.
RATES, ALPHAS = (_REG_LRS, *unet_blocks.RATES), (_REG_ALPHAS, *unet_blocks.ALPHAS)


class BlockChoice(NamedTuple):
    """The options of a network of sd-scripts that choose blocks, by the names of their lists in the model.

    `kinds` are the values of `train_blocks`, and `numbered` the options that choose blocks of a list by number.
    """

    ranks: RankOptions
    kinds: Mapping[str, tuple[str, ...]] = {}
    numbered: Mapping[str, str] = {}


# Source: `create_network` of networks/lora_flux.py, lora_sd3.py and lora_lumina.py in sd-scripts, by family.
CHOICES: Mapping[str, BlockChoice] = {
    "flux": BlockChoice(
        NETWORKS["networks.lora_flux"],
        {"double": ("double_blocks",), "single": ("single_blocks",)},
        {"train_double_block_indices": "double_blocks", "train_single_block_indices": "single_blocks"},
    ),
    "sd3": BlockChoice(NETWORKS["networks.lora_sd3"], numbered={"train_block_indices": "joint_blocks"}),
    "lumina2": BlockChoice(
        NETWORKS["networks.lora_lumina"],
        {
            "transformer": ("layers",),
            "refiners": ("noise_refiner", "context_refiner"),
            "noise_refiner": ("noise_refiner",),
            "context_refiner": ("context_refiner",),
        },
    ),
}


def options_of(architecture: Architecture) -> dict[str, NetworkOption]:
    """Return the options by name that only the family's network module has."""
    own = {
        _REG_DIMS: NetworkOption(read_reg_dims, {}),
        _REG_ALPHAS: NetworkOption(read_reg_alphas, {}),
        _REG_LRS: NetworkOption(read_reg_lrs, {}),
    }
    if blocks := UNETS.get(architecture.name):
        return {**own, **unet_blocks.options_of(blocks)}
    if choice := CHOICES.get(architecture.name):
        own |= {option: NetworkOption(read_count) for option, _ in choice.ranks.typed}
        if choice.ranks.listed:
            option, words = choice.ranks.listed
            own[option] = NetworkOption(partial(_read_ranks, len(words)))
        if choice.kinds:
            own[_TRAIN_BLOCKS] = NetworkOption(partial(_read_kind, choice.kinds), _ALL)
        # The word none is a choice of blocks, and no absence.
        own |= {option: NetworkOption(_read_block_numbers, _ALL) for option in choice.numbered}
    return own


def values_of(
    architecture: Architecture,
    training: Training,
    model: nn.Module,
    classes: Sequence[str] | None,
    encoders: Sequence[EncoderTargets],
    options: NetworkArguments,
) -> dict[str, LayerValues]:
    """Return the values of each layer of the model and of the text encoders that has any, by dotted path.

    `classes` are those of the adapted blocks. Layers outside these come last, in the order in which sd-scripts makes
    them. A warning names options that find no layer.
    """
    inside = dict(named_leaves(model, classes))
    names = {path: module_name(PREFIX, path) for path in inside}
    found: dict[str, LayerValues] = {}
    if blocks := UNETS.get(architecture.name):
        found = unet_blocks.values_of(blocks, inside, options)
    elif choice := CHOICES.get(architecture.name):
        leaves = dict(named_leaves(model))
        found = {**_of_blocks(choice, inside, options), **_outside_of_blocks(choice, leaves, inside, options)}
        names = {path: module_name(PREFIX, path) for path in (*inside, *found)}
        _warn_of_idle(choice, inside, found, options)
    for one in encoders:
        names |= {path: module_name(one.prefix, path) for path, _ in named_leaves(one.model, one.classes)}
    for path, rank in _by_expression(training, names, options, _REG_DIMS).items():
        own = found.get(path, NO_VALUES)
        if own.source != _TRAIN_BLOCKS and own.lr_weight:
            found[path] = own._replace(rank=rank, source=_REG_DIMS)
    for path, alpha in _by_expression(training, names, options, _REG_ALPHAS).items():
        found[path] = found.get(path, NO_VALUES)._replace(alpha=alpha)
    for path, rate in _by_expression(training, names, options, _REG_LRS).items():
        found[path] = found.get(path, NO_VALUES)._replace(rate=rate)
    return found


def _of_blocks(
    choice: BlockChoice, inside: Mapping[str, nn.Module], options: NetworkArguments
) -> dict[str, LayerValues]:
    """Return the values of layers in blocks that are adapted.

    sd-scripts makes the layers of one kind of blocks after those of the other.
    """
    found: dict[str, LayerValues] = {}
    kinds = options.extra.get(_TRAIN_BLOCKS, _ALL)
    for path, leaf in inside.items():
        blocks, _, rest = path.partition(".")
        if kinds != _ALL and blocks not in kinds:
            found[path] = LayerValues(0, _TRAIN_BLOCKS)
            continue
        own = _typed(choice, path, leaf, options) or NO_VALUES
        if kinds != _ALL:
            own = own._replace(place=kinds.index(blocks))
        if own != NO_VALUES:
            found[path] = own
        for option, numbered in choice.numbered.items():
            chosen = options.extra[option]
            left_out = chosen != _ALL and blocks == numbered and int(rest.partition(".")[0]) not in chosen
            if left_out and found.get(path, NO_VALUES).rank != 0:
                found[path] = LayerValues(0, option)
    return found


def _outside_of_blocks(
    choice: BlockChoice, leaves: Mapping[str, nn.Module], inside: Collection[str], options: NetworkArguments
) -> dict[str, LayerValues]:
    """Return the values of layers outside of the blocks, in the order of sd-scripts."""
    found: dict[str, LayerValues] = {}
    option, words = choice.ranks.listed or ("", ())
    for word, rank in zip(words, options.extra.get(option) or (), strict=False):
        for path, leaf in leaves.items():
            if path in found or path in inside or word not in module_name(PREFIX, path):
                continue
            of_conv = has_kernel(leaf) and options.conv_dim is not None
            listed = LayerValues(options.conv_dim, "conv_dim") if of_conv else LayerValues(rank, option)
            own = _typed(choice, path, leaf, options) or listed
            found[path] = own._replace(wanted=True, place=len(choice.kinds))
    return found


def _typed(choice: BlockChoice, path: str, leaf: nn.Module, options: NetworkArguments) -> LayerValues | None:
    """Return the rank of the first given option for layers of this kind, or None."""
    name = module_name(PREFIX, path)
    for option, words in choice.ranks.typed:
        rank = options.extra[option]
        if rank is not None and not has_kernel(leaf) and all(word in name for word in words):
            return LayerValues(rank, option, wanted=True)
    return None


def _warn_of_idle(
    choice: BlockChoice, inside: Collection[str], found: Mapping[str, LayerValues], options: NetworkArguments
) -> None:
    """Warn of each option that is about no layer of the model."""
    ranked = [option for option, _ in choice.ranks.typed] + ([choice.ranks.listed[0]] if choice.ranks.listed else [])
    used = {own.source for own in found.values()}
    for option in ranked:
        if options.extra[option] is not None and option not in used:
            logger.warning(f"{option}: no effect, as no layer of the model has its rank from it")
    for option, blocks in choice.numbered.items():
        of_model = {int(path.split(".")[1]) for path in inside if path.startswith(f"{blocks}.")}
        if options.extra[option] != _ALL and (absent := sorted(options.extra[option] - of_model)):
            logger.warning(f"{option}: the model has no blocks {', '.join(map(str, absent))} in {blocks}")


def _by_expression(
    training: Training, names: Mapping[str, str], options: NetworkArguments, option: str
) -> dict[str, Any]:
    """Return the value of the first expression that matches each layer, by path; `names` are module names.

    A warning names expressions that are the first for no layer.
    """
    found: dict[str, Any] = {}
    unused = dict.fromkeys(options.extra[option])
    for path, name in names.items():
        for expression, value in options.extra[option].items():
            if re.search(expression, name) if training.searches_names else re.fullmatch(expression, path):
                found[path] = value
                unused.pop(expression, None)
                break
    for expression in unused:
        logger.warning(f"{option}: {expression!r} matches no layer, or only layers that one before it matches")
    return found


def _read_ranks(length: int, name: str, value: Any) -> list[int]:
    """Read `length` ranks, as `[4,4,0]`; 0 leaves layers out."""
    parts = value if isinstance(value, list | tuple) else str(value).strip().strip("[]").split(",")
    if len(parts) != length:
        raise ValueError(f"{name}={value!r}: {length} whole numbers were expected")
    return [read_count(name, part) for part in parts]


def _read_kind(kinds: Mapping[str, tuple[str, ...]], name: str, value: Any) -> tuple[str, ...] | str:
    """Read one kind of blocks: the names of their lists, or `all`."""
    if value != _ALL and value not in kinds:
        raise ValueError(f"{name}={value!r}: one of {', '.join((_ALL, *kinds))} was expected")
    return _ALL if value == _ALL else kinds[value]


def _read_block_numbers(name: str, value: Any) -> frozenset[int] | str:
    """Read numbers of blocks, as `0,3-5`, or `all`; `none` are no numbers."""
    text = str(value).strip()
    if text == _ALL:
        return _ALL
    chosen: set[int] = set()
    for part in text.split(",") if text not in ("", _NONE) else ():
        first, _, last = part.partition("-")
        numbers = range(read_count(name, first), read_count(name, last or first) + 1)
        if not numbers:
            raise ValueError(f"{name}={value!r}: {part.strip()!r} ends before it begins")
        chosen.update(numbers)
    return frozenset(chosen)
