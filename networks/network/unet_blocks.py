"""sd-scripts' options for the blocks of a UNet: ranks, alphas, and learning rate multiples.

Source of the order of blocks and of the presets: `get_block_index` and `get_block_lr_weight` of networks/lora.py in
sd-scripts.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from ..network_args import LayerValues, NetworkArguments, NetworkOption, read_alpha, read_count, read_float
from .targets import has_kernel

logger = logging.getLogger(__name__)

_DIMS, _ALPHAS, _CONV_DIMS, _CONV_ALPHAS = "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"
_THRESHOLD = "block_lr_zero_threshold"
_WEIGHTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
# The options of learning rates, and those that have no effect where the algorithm has no scale.
RATES, ALPHAS = (*_WEIGHTS, _THRESHOLD), (_ALPHAS, _CONV_ALPHAS)
# The options that only say more about another one: each has a meaning with any of these.
_PARTS = {
    _ALPHAS: (_DIMS, *_WEIGHTS),
    _CONV_DIMS: (_DIMS, *_WEIGHTS),
    _CONV_ALPHAS: (_CONV_DIMS,),
    _THRESHOLD: _WEIGHTS,
}
# The weight of block i of the n blocks of a side, from 0 to 1, by name.
_PRESETS: Mapping[str, Callable[[int, int], float]] = {
    "sine": lambda i, n: math.sin(math.pi * (i / (n - 1)) / 2),
    "cosine": lambda i, n: math.sin(math.pi * ((n - 1 - i) / (n - 1)) / 2),
    "linear": lambda i, n: i / (n - 1),
    "reverse_linear": lambda i, n: (n - 1 - i) / (n - 1),
    "zeros": lambda i, n: 0.0,
}


class UNetBlocks(NamedTuple):
    """sd-scripts' numbers of the blocks of a UNet: the way down, then the middle, then the way up.

    `side` and `middle` are numbers of blocks. `ends` are the blocks before and after all of them, which hold no adapted
    layer. `places` has, by expressions for dotted paths, the number of the first block and the step of each group.
    """

    side: int
    middle: int
    ends: int
    places: Mapping[str, tuple[int, tuple[int, ...]]]

    @property
    def total(self) -> int:
        """The number of blocks, which is the length of lists."""
        return 2 * (self.ends + self.side) + self.middle

    def number(self, path: str) -> int | None:
        """Return the number of the block of the layer at `path`, from 0, or None for layers in none."""
        for pattern, (first, steps) in self.places.items():
            if found := re.match(pattern, path):
                return first + sum(step * int(group) for step, group in zip(steps, found.groups(), strict=True))
        return None


_PARTS_OF_BLOCKS = r"\.(\d+)\.(?:resnets|attentions)\.(\d+)\."
# By the name of the family. Of the UNet of Stable Diffusion XL the first rows are the names in sd-scripts.
UNETS: Mapping[str, UNetBlocks] = {
    "sd15": UNetBlocks(
        side=12,
        middle=1,
        ends=0,
        places={
            rf"down_blocks{_PARTS_OF_BLOCKS}": (1, (3, 1)),
            r"down_blocks\.(\d+)\.downsamplers\.": (3, (3,)),
            r"mid_block\.": (12, ()),
            rf"up_blocks{_PARTS_OF_BLOCKS}": (13, (3, 1)),
            r"up_blocks\.(\d+)\.upsamplers\.": (15, (3,)),
        },
    ),
    "sdxl": UNetBlocks(
        side=9,
        middle=3,
        ends=1,
        places={
            r"input_blocks\.(\d+)\.": (1, (1,)),
            r"middle_block\.(\d+)\.": (10, (1,)),
            r"output_blocks\.(\d+)\.": (13, (1,)),
            rf"down_blocks{_PARTS_OF_BLOCKS}": (2, (3, 1)),
            r"down_blocks\.(\d+)\.downsamplers\.": (4, (3,)),
            r"mid_block\.resnets\.(\d+)\.": (10, (2,)),
            r"mid_block\.attentions\.": (11, ()),
            rf"up_blocks{_PARTS_OF_BLOCKS}": (13, (3, 1)),
            r"up_blocks\.(\d+)\.upsamplers\.": (15, (3,)),
        },
    ),
}


def options_of(unet: UNetBlocks) -> dict[str, NetworkOption]:
    """Return the options by name; the default of each is None, except for the threshold."""
    down, middle, up = _WEIGHTS
    return {
        _DIMS: NetworkOption(partial(_read_list, read_count, unet.total)),
        _ALPHAS: NetworkOption(partial(_read_list, read_alpha, unet.total)),
        _CONV_DIMS: NetworkOption(partial(_read_list, read_count, unet.total)),
        _CONV_ALPHAS: NetworkOption(partial(_read_list, read_alpha, unet.total)),
        down: NetworkOption(partial(_read_weights, unet.side)),
        middle: NetworkOption(partial(_read_numbers, unet.middle)),
        up: NetworkOption(partial(_read_weights, unet.side)),
        _THRESHOLD: NetworkOption(read_alpha, 0.0),
    }


def trains_convolutions(options: NetworkArguments) -> bool:
    """Return True if the options give convolutions with a kernel a rank."""
    return bool(options.conv_dim or options.extra.get(_CONV_DIMS))


def values_of(blocks: UNetBlocks, layers: Mapping[str, nn.Module], options: NetworkArguments) -> dict[str, LayerValues]:
    """Return the values of those `layers` that have any, by dotted path.

    A block with the weight 0 is left out. Raises ValueError for an option that refines a missing one.
    """
    for name, others in _PARTS.items():
        if name in options.given and not options.given.intersection(others):
            raise ValueError(f"{name} has no meaning without {' or '.join(others)}")
    weights = _weights(blocks, options)
    ranks = {False: (_DIMS, _ALPHAS), True: (_CONV_DIMS, _CONV_ALPHAS)}
    if weights is None and options.extra[_DIMS] is None:
        return {}
    found: dict[str, LayerValues] = {}
    for path, leaf in layers.items():
        block = blocks.number(path)
        if block is None:
            continue
        dims, alphas = ranks[has_kernel(leaf)]
        weight = 1.0 if weights is None else weights[block]
        rank, alpha = (options.extra[name] and options.extra[name][block] for name in (dims, alphas))
        source = dims if weight else _option_of_weight(blocks, block)
        found[path] = LayerValues(
            rank if weight else 0, source, alpha, block=None if weights is None else block, lr_weight=weight
        )
    return found


def _weights(blocks: UNetBlocks, options: NetworkArguments) -> list[float] | None:
    """Return the learning rate multiple of each block, or None if no option gives one."""
    given = [options.extra[name] for name in _WEIGHTS]
    if all(weights is None for weights in given):
        return None
    sizes = (blocks.side, blocks.middle, blocks.side)
    filled = [weights or [1.0] * size for weights, size in zip(given, sizes, strict=True)]
    kept = [weight if weight > options.extra[_THRESHOLD] else 0.0 for weights in filled for weight in weights]
    return [*[1.0] * blocks.ends, *kept, *[1.0] * blocks.ends]


def _option_of_weight(blocks: UNetBlocks, block: int) -> str:
    down, middle, up = _WEIGHTS
    before = blocks.ends + blocks.side
    return down if block < before else middle if block < before + blocks.middle else up


def _read_list(read: Callable[[str, Any], Any], length: int, name: str, value: Any) -> list[Any]:
    """Read a value for each block, as `4,8,…`."""
    parts = _split(value)
    if len(parts) != length:
        raise ValueError(f"{name}: {length} numbers were expected, one for each block, not {len(parts)}")
    return [read(name, part) for part in parts]


def _read_weights(length: int, name: str, value: Any) -> list[float]:
    """Read the weights of a side: numbers, or a preset plus a number, as `cosine+0.25`."""
    parts = _split(value)
    if len(parts) > 1:
        return _read_numbers(length, name, value)
    preset, _, added = (part.strip() for part in parts[0].partition("+"))
    if preset not in _PRESETS:
        known = ", ".join(sorted(_PRESETS))
        raise ValueError(f"{name}={value!r}: {length} numbers were expected, or one of {known}, as cosine+0.25")
    base = read_float(name, added or 0)
    return [_PRESETS[preset](i, length) + base for i in range(length)]


def _read_numbers(length: int, name: str, value: Any) -> list[float]:
    """Read `length` numbers, as `0,0.5,1`: an empty one is 0, and missing ones at the end are 1."""
    numbers = [read_float(name, part or 0) for part in _split(value)]
    if len(numbers) != length:
        change = "the rest is 1" if len(numbers) < length else "the rest is ignored"
        logger.warning(f"{name}: {len(numbers)} numbers for {length} blocks; {change}")
    return [*numbers[:length], *[1.0] * (length - len(numbers))]


def _split(value: Any) -> list[str]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(part).strip() for part in parts]
