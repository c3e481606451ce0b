"""Which layers of a model are adapted, with which rank and alpha, and why the others are not."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from lora_inspect.schemes.kohya import KOHYA

# By name and not by type: a quantised subclass is no layer to adapt, and a trainer's replacement for one is.
LEAF_CLASSES = ("Linear", "Conv2d", "Conv3d")


class Target(NamedTuple):
    """A layer to adapt: its dotted path from the model's root, and the rank and alpha of its factors.

    `split_dims` are the output features of each slice of a fused Linear that is adapted slice by slice.
    """

    path: str
    module: nn.Module
    rank: int
    alpha: float | None
    split_dims: tuple[int, ...] | None = None


class Selection(NamedTuple):
    """The layers that are adapted, and the reason for each that is not, by its path."""

    targets: list[Target]
    skipped: dict[str, str]


@dataclass(frozen=True, slots=True)
class Patterns:
    """Regular expressions, each matched against the whole dotted path from the model's root.

    The user's includes rescue from every exclude, the architecture's own includes only from its own excludes:
    what the user excludes stays out.
    """

    excludes: Sequence[str] = ()
    includes: Sequence[str] = ()
    default_excludes: Sequence[str] = ()
    default_includes: Sequence[str] = ()

    def reason_to_skip(self, path: str) -> str | None:
        """Why the layer at `path` is left out, or None where it is adapted."""
        if _first_match(self.includes, path):
            return None
        if pattern := _first_match(self.excludes, path):
            return f"it matches the exclude pattern {pattern!r}"
        pattern = _first_match(self.default_excludes, path)
        if pattern and not _first_match(self.default_includes, path):
            return f"it matches the default exclude pattern {pattern!r}"
        return None


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank and alpha of Linear layers and 1x1 convolutions, and those of convolutions with a larger kernel."""

    dim: int
    alpha: float | None
    conv_dim: int
    conv_alpha: float | None


def select(root: nn.Module, classes: Sequence[str] | None, patterns: Patterns, ranks: Ranks) -> Selection:
    """The leaves of the blocks named by `classes` (None: of the whole model) that the patterns let through."""
    targets: list[Target] = []
    skipped: dict[str, str] = {}
    for path, module in named_leaves(root, classes):
        reason = patterns.reason_to_skip(path)
        if reason is None and has_kernel(module) and ranks.conv_dim == 0:
            reason = "conv_dim is 0"
        if reason is not None:
            skipped[path] = reason
        elif has_kernel(module):
            targets.append(Target(path, module, ranks.conv_dim, ranks.conv_alpha))
        else:
            targets.append(Target(path, module, ranks.dim, ranks.alpha))
    return Selection(targets, skipped)


def select_named(
    root: nn.Module,
    prefix: str,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float | None],
    splits: Mapping[str, Sequence[int] | None],
) -> Selection:
    """The layers whose names are in `ranks`, in the order of the model; raises ValueError for names without one."""
    chosen: list[Target] = []
    left = dict(ranks)
    for path, module in named_leaves(root):
        name = module_name(prefix, path)
        if name in ranks:
            split = splits.get(name)
            chosen.append(Target(path, module, ranks[name], alphas.get(name), tuple(split) if split else None))
            left.pop(name, None)
    if left:
        some = ", ".join(list(left)[:5])
        raise ValueError(
            f"{len(left)} of the {len(ranks)} modules of the weights have no layer in the model ({some}): "
            "they are for another model or another naming of it"
        )
    return Selection(chosen, {})


def module_name(prefix: str, path: str) -> str:
    """The name in keys of the layer at the dotted `path`."""
    return KOHYA.module(path, f"{prefix}_")


def named_leaves(root: nn.Module, classes: Sequence[str] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """(dotted path, layer) of each adaptable layer inside a block whose class name is in `classes`, each once."""
    seen: set[nn.Module] = set()
    for path, block in root.named_modules():
        if classes is not None and type(block).__name__ not in classes:
            continue
        for leaf_path, leaf in block.named_modules(prefix=path):
            if type(leaf).__name__ in LEAF_CLASSES and leaf not in seen:
                seen.add(leaf)
                yield leaf_path, leaf
        if classes is None:
            return


def has_kernel(module: nn.Module) -> bool:
    """Whether the layer is a convolution with a kernel larger than 1."""
    return any(size != 1 for size in getattr(module, "kernel_size", ()))


def _first_match(patterns: Sequence[str], path: str) -> str | None:
    return next((pattern for pattern in patterns if re.fullmatch(pattern, path)), None)
