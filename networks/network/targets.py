"""The selection of a model's layers, with rank, alpha and slices, and the reasons for the others.

Regular expressions match whole dotted paths of layers.

A file may hold layers that an architecture leaves out by default, since other trainers adapt them by default. A network
that continues from such a file has to have them too. It still excludes the layers that the user leaves out.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..files.file_names import module_name
from ..kernels.coded_weight import is_coded, multiplies_itself, stored_weight
from ..modules.base_forward import CONVOLUTIONS, KINDS, follows_its_weight, is_transposed, kind_of, linear_sizes
from ..network_args import NO_VALUES, LayerValues

# A trainer's replacement for one of torch's layers may have its name without being one.
_NAMES = ("Linear", "Conv1d", "Conv2d", "Conv3d")
_LEAVES_OUT = " leaves it out"
_UNCALLED = "MultiheadAttention computes with its weight and does not call it"


def named_leaves(
    root: nn.Module, classes: Sequence[str] | None = None, paths: Sequence[str] = ()
) -> Iterator[tuple[str, nn.Module]]:
    """Yield (dotted path, layer) of each Linear and convolution inside a block of `classes`, each once.

    A block also counts if one of the regular expressions `paths` matches its dotted path. Layers that cannot be adapted
    are included.
    """
    seen: set[nn.Module] = set()
    for path, block in root.named_modules():
        if classes is not None and class_name(block) not in classes and not first_match(paths, path):
            continue
        for leaf_path, leaf in block.named_modules(prefix=path):
            if _is_leaf(leaf) and leaf not in seen:
                seen.add(leaf)
                yield leaf_path, leaf
        if classes is None:
            return


def class_name(module: nn.Module) -> str:
    """Return the name of the module's class, without the prefix of FSDP2's fully_shard."""
    name = type(module).__name__
    return name.removeprefix("FSDP") if hasattr(module, "unshard") else name


def obstacles(root: nn.Module, leaves: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the reasons why some of a model's `leaves` cannot be adapted, by path."""
    uncalled = {module.out_proj for module in root.modules() if isinstance(module, nn.MultiheadAttention)}
    found = {path: _UNCALLED if leaf in uncalled else _obstacle(leaf) for path, leaf in leaves.items()}
    return {path: f"its class is {class_name(leaves[path])}, and {reason}" for path, reason in found.items() if reason}


def others(
    root: nn.Module, leaves: Mapping[str, nn.Module], classes: Sequence[str] | None, paths: Sequence[str] = ()
) -> dict[str, str]:
    """Return the reasons why other modules with their own tensors are not adapted, by path.

    Modules in `leaves` are not among them.
    """
    known = set(leaves.values())
    outside = f"it is in no block of the classes that are adapted, {', '.join(classes or ())}"
    if paths:
        outside = f"it is in no module of the targets {', '.join(paths)}"
    return {
        path: outside if _is_leaf(module) else f"its class {class_name(module)} is no Linear layer and no convolution"
        for path, module in root.named_modules()
        if module not in known and _has_tensors(module)
    }


def _is_leaf(module: nn.Module) -> bool:
    return isinstance(module, KINDS) or class_name(module) in _NAMES or is_transposed(module) or _is_in_codes(module)


def _is_in_codes(module: nn.Module) -> bool:
    """Return True if a module is a library's own Linear layer.

    It has the sizes of one, and its own integers.
    """
    sizes = linear_sizes(module)
    if sizes is None or not all(isinstance(size, int) for size in sizes) or next(module.children(), None) is not None:
        return False
    held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(not tensor.is_floating_point() and tensor.numel() > 1 for tensor in held)


def _has_tensors(module: nn.Module) -> bool:
    stored = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    return any(tensor is not None for tensor in module._parameters.values()) or bool(stored)


def _obstacle(layer: Any) -> str | None:
    if linear_sizes(layer) is not None and multiplies_itself(layer) and is_coded(layer):
        return None
    weight = stored_weight(layer)
    if not isinstance(weight, Tensor):
        return "it has no weight"
    if is_lazy(weight):
        return "its sizes are not known before its first input"
    if not weight.is_floating_point():
        return f"its weight is stored as {str(weight.dtype).removeprefix('torch.')}"
    kind = kind_of(layer)
    if kind is None and linear_sizes(layer) is None:
        return "it has the name of a layer of torch without being one"
    if (sizes := _sizes(layer)) != list(weight.shape):
        return f"its weight has the shape {list(weight.shape)} instead of {sizes}"
    if kind in CONVOLUTIONS and not follows_its_weight(layer):
        return "its forward is not the convolution of its settings"
    return None


def _sizes(layer: Any) -> list[int]:
    """Return the shape of the weight by the layer's own settings."""
    if (sizes := linear_sizes(layer)) is not None:
        return list(sizes if is_transposed(layer) else sizes[::-1])
    return [layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size]


_Value = TypeVar("_Value")
_Default = TypeVar("_Default")


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """Return the first pattern that matches `path`, or None."""
    return next((pattern for pattern in patterns if re.fullmatch(pattern, path)), None)


def value_at(values: Mapping[str, _Value], path: str, default: _Default) -> _Value | _Default:
    """Return the value of the first pattern that matches `path`, or `default`."""
    pattern = first_match(values, path)
    return default if pattern is None else values[pattern]


def unmatched(patterns: Iterable[str], paths: Collection[str]) -> list[str]:
    """Return the patterns that match none of the `paths`."""
    return [pattern for pattern in patterns if not any(re.fullmatch(pattern, path) for path in paths)]


def never_first(patterns: Collection[str], paths: Collection[str]) -> list[str]:
    """Return the patterns that match some of the `paths`, but only after earlier patterns."""
    used = {first_match(patterns, path) for path in paths}
    idle = unmatched(patterns, paths)
    return [pattern for pattern in patterns if pattern not in used and pattern not in idle]


class TargetLayer(NamedTuple):
    """A layer to adapt: its dotted path from the model's root, and the rank and alpha of its factors.

    `split_dims` are the output features of each slice of a fused Linear that is adapted slice by slice. `rank_source`
    is the option of the rank, and `keywords` are further arguments of its module.
    """

    path: str
    module: nn.Module
    rank: int
    alpha: float | None
    split_dims: tuple[int, ...] | None = None
    rank_source: str = "the weights"
    keywords: Mapping[str, Any] = {}


class Form(NamedTuple):
    """The form of a module in weights: rank, alpha and slices of its factors, and further arguments."""

    rank: int
    alpha: float | None = None
    split_dims: tuple[int, ...] | None = None
    keywords: Mapping[str, Any] = {}


class Selection(NamedTuple):
    """The adapted layers, and by path the reasons for each other one.

    `skipped` layers are in reach and could be adapted, `unfit` ones cannot, and `others` are all other modules with
    tensors. `rescued` are the paths that an exclude matches and an include of the user keeps. By option, `unmatched`
    are the user's patterns that match no layer in reach, and `idle` those without an effect at their layers. `optional`
    are the skipped layers that no pattern of the user excludes, as targets.
    """

    targets: list[TargetLayer]
    skipped: dict[str, str]
    rescued: list[str]
    unmatched: dict[str, list[str]]
    idle: dict[str, list[str]]
    optional: Sequence[TargetLayer] = ()
    unfit: Mapping[str, str] = {}
    others: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Patterns:
    """Regular expressions, each matched against the whole dotted path from the model's root.

    The user's includes rescue from every exclude. The architecture's own includes rescue only from its own excludes,
    not from the user's.
    """

    excludes: Sequence[str] = ()
    includes: Sequence[str] = ()
    default_excludes: Sequence[str] = ()
    default_includes: Sequence[str] = ()

    def reason_to_skip(self, path: str) -> str | None:
        """Return the reason to leave the layer at `path` out, or None if it is adapted."""
        return None if first_match(self.includes, path) else self._exclusion(path)

    def is_rescued(self, path: str) -> bool:
        """Return True if only an include of the user keeps the layer at `path`."""
        return bool(first_match(self.includes, path) and self._exclusion(path))

    def are_the_user_s(self, path: str) -> bool:
        """Return True if an exclude of the user leaves the layer at `path` out."""
        return first_match(self.excludes, path) is not None

    def _exclusion(self, path: str) -> str | None:
        if pattern := first_match(self.excludes, path):
            return f"it matches the exclude pattern {pattern!r}"
        pattern = first_match(self.default_excludes, path)
        if pattern and not first_match(self.default_includes, path):
            return f"it matches the default exclude pattern {pattern!r}"
        return None


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank and alpha of each layer; convolutions with a kernel above 1 have their own.

    The values of `layers` by dotted path precede both, and the first match of `rank_pattern` and `alpha_pattern`
    precedes these. A `conv_dim` of 0 leaves out convolutions with a kernel, unless one of these names them. Without
    `enable_conv2d` no convolution is adapted.
    """

    dim: int
    alpha: float | None
    conv_dim: int
    conv_alpha: float | None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    enable_conv2d: bool = True
    layers: Mapping[str, LayerValues] = field(default_factory=dict)

    def target(self, path: str, module: nn.Module) -> TargetLayer | None:
        """Return the layer at `path` with its rank and alpha, or None if conv_dim leaves it out."""
        kernel = has_kernel(module)
        rank, source = (self.conv_dim, "conv_dim") if kernel else (self.dim, "network_dim")
        own = self.layers.get(path, NO_VALUES)
        if own.rank is not None:
            rank, source = own.rank, own.source
        if pattern := first_match(self.rank_pattern, path):
            rank, source = self.rank_pattern[pattern], f"rank_pattern {pattern!r}"
        if rank == 0 and kernel:
            return None
        default = self.conv_alpha if kernel else self.alpha
        alpha = value_at(self.alpha_pattern, path, default if own.alpha is None else own.alpha)
        return TargetLayer(path, module, rank, alpha, rank_source=source)


@dataclass(frozen=True, slots=True)
class Splits:
    """The slices of fused Linears: by regular expression, and thirds for names that end in qkv."""

    by_pattern: Mapping[str, Sequence[int]] = field(default_factory=dict)
    qkv: bool = False

    def sizes(self, path: str, module: Any) -> tuple[int, ...] | None:
        """Return the output features of each slice of the layer at `path`, or None if it is not split."""
        if pattern := first_match(self.by_pattern, path):
            return tuple(self.by_pattern[pattern])
        sizes = linear_sizes(module)
        if not (self.qkv and path.endswith("qkv") and sizes):
            return None
        third, rest = divmod(sizes[1], 3)
        if rest:
            raise ValueError(
                f"split_qkv: the {sizes[1]} outputs of {path} do not split into three equal slices; "
                "give their sizes with split_dims"
            )
        return (third, third, third)


def select(
    root: nn.Module,
    classes: Sequence[str] | None,
    patterns: Patterns,
    ranks: Ranks,
    splits: Splits = Splits(),
    paths: Sequence[str] = (),
    wanted: Sequence[str] = (),
) -> Selection:
    """Select leaves of the blocks of `classes` (None: the whole model) by the patterns.

    `paths` are regular expressions of further blocks. `wanted` are the dotted paths of layers that only the user's
    excludes leave out; layers of these in no block come last, in this order.
    """
    found = dict(named_leaves(root, classes, paths))
    found.update((path, root.get_submodule(path)) for path in wanted if path not in found)
    unfit = obstacles(root, found)
    ordered = sorted(found, key=lambda path: ranks.layers.get(path, NO_VALUES).place)
    leaves = {path: found[path] for path in ordered if path not in unfit}
    chosen: list[TargetLayer] = []
    optional: list[TargetLayer] = []
    skipped: dict[str, str] = {}
    for path, module in leaves.items():
        excluded = patterns.reason_to_skip(path)
        if excluded and patterns.are_the_user_s(path):
            skipped[path] = excluded
            continue
        if path in wanted:
            excluded = None
        own = ranks.layers.get(path, NO_VALUES)
        if own.rank == 0:
            skipped[path] = excluded or f"{own.source}{_LEAVES_OUT}"
        elif not ranks.enable_conv2d and hasattr(module, "kernel_size"):
            skipped[path] = excluded or "enable_conv2d is False"
        elif not (target := ranks.target(path, module)):
            skipped[path] = excluded or "conv_dim is 0"
        else:
            target = target._replace(split_dims=splits.sizes(path, module))
            if excluded:
                skipped[path] = excluded
            (optional if excluded else chosen).append(target)
    adapted = [target.path for target in chosen]
    rescued = [path for path in adapted if patterns.is_rescued(path)]
    valued = {"rank_pattern": ranks.rank_pattern, "alpha_pattern": ranks.alpha_pattern, "split_dims": splits.by_pattern}
    found_nothing = {
        "exclude_patterns": unmatched(patterns.excludes, leaves),
        "include_patterns": unmatched(patterns.includes, leaves),
        **{option: unmatched(values, adapted) for option, values in valued.items()},
        "split_qkv": unmatched([".*qkv"] if splits.qkv else [], adapted),
    }
    idle = {
        "include_patterns": [
            pattern
            for pattern in unmatched(patterns.includes, rescued)
            if pattern not in found_nothing["include_patterns"]
        ],
        **{option: never_first(values, adapted) for option, values in valued.items()},
    }
    return Selection(
        chosen,
        skipped,
        rescued,
        {option: left for option, left in found_nothing.items() if left},
        {option: left for option, left in idle.items() if left},
        optional=optional,
        unfit=unfit,
        others=others(root, found, classes, paths),
    )


class UnmatchedWeights(ValueError):
    """Weights with modules that have no layer in the model."""


def select_named(root: nn.Module, prefix: str, forms: Mapping[str, Form]) -> Selection:
    """Select the layers with names in `forms`, in the order of the model.

    Raises UnmatchedWeights, a ValueError, for names without a layer.
    """
    chosen: list[TargetLayer] = []
    left = dict(forms)
    leaves = {path: leaf for path, leaf in named_leaves(root) if module_name(prefix, path) in forms}
    for path, reason in obstacles(root, leaves).items():
        raise ValueError(f"{module_name(prefix, path)}: {path} cannot be adapted, because {reason}")
    for path, module in leaves.items():
        name = module_name(prefix, path)
        if form := forms.get(name):
            chosen.append(TargetLayer(path, module, form.rank, form.alpha, form.split_dims, keywords=form.keywords))
            left.pop(name, None)
    if left:
        some = ", ".join(list(left)[:5])
        raise UnmatchedWeights(
            f"{len(left)} of the {len(forms)} modules of the weights {'have' if len(left) > 1 else 'has'} no layer in "
            f"the model ({some}); pass the model whose layers the weights name"
        )
    return Selection(chosen, {}, [], {}, {})


class EncoderTargets(NamedTuple):
    """A text encoder to adapt: the prefix of its modules' names, the model, and its blocks' classes.

    None stands for all layers of the model.
    """

    prefix: str
    model: nn.Module
    classes: Sequence[str] | None


def select_each_named(
    root: nn.Module, prefix: str, encoders: Sequence[EncoderTargets], forms: Mapping[str, Form]
) -> list[Selection]:
    """Select by `select_named` in the model and in each text encoder, by the prefix of its names."""
    left = dict(forms)
    in_encoders = []
    for encoder in encoders:
        own = {name: left.pop(name) for name in list(left) if name.startswith(f"{encoder.prefix}_")}
        in_encoders.append(select_named(encoder.model, encoder.prefix, own))
    return [select_named(root, prefix, left), *in_encoders]


def share_findings(selections: Sequence[Selection]) -> None:
    """Remove findings on patterns from the first selection if another selection contradicts them."""
    first, *rest = selections
    for found in (first.unmatched, first.idle):
        for option, patterns in list(found.items()):
            without_effect = [
                {*other.unmatched.get(option, ()), *other.idle.get(option, ())} for other in rest if other.targets
            ]
            kept = [pattern for pattern in patterns if all(pattern in other for other in without_effect)]
            found[option] = kept
            if not kept:
                del found[option]


def named_sizes(root: nn.Module, prefix: str, splits: Splits) -> dict[str, tuple[int, ...]]:
    """Return the output features of the slices by name, for each split layer of the model."""
    sizes = ((path, splits.sizes(path, module)) for path, module in named_leaves(root))
    return {module_name(prefix, path): found for path, found in sizes if found}


def has_kernel(module: nn.Module) -> bool:
    """Return True if the layer is a convolution with a kernel larger than 1."""
    return any(size != 1 for size in getattr(module, "kernel_size", ()))


class LeftOut:
    """The skipped layers of a `selection`; `create` makes the modules of targets by name.

    `switches` are the values of the architecture's options that would include layers, by the pattern that excludes
    these.
    """

    def __init__(
        self, prefix: str, selection: Selection, create: Callable[[Sequence[TargetLayer]], dict[str, Any]]
    ) -> None:
        self.switches: Mapping[str, str] = {}
        self._reasons = {module_name(prefix, path): (path, reason) for path, reason in selection.skipped.items()}
        self._optional = {module_name(prefix, target.path): target for target in selection.optional}
        self._create = create

    @property
    def layers(self) -> list[Any]:
        """The layers of the model that could be included."""
        return [target.module for target in self._optional.values()]

    def modules(self, names: Collection[str]) -> dict[str, Any]:
        """Return new modules, by name, for those `names` that the user has not left out."""
        return self._create([target for name, target in self._optional.items() if name in names])

    def way_in(self, name: str) -> str | None:
        """Return the option that includes the layer of the module called `name`, or None."""
        if name not in self._reasons:
            return None
        path, reason = self._reasons[name]
        for pattern, option in self.switches.items():
            if re.fullmatch(pattern, path):
                return option
        if reason.endswith(_LEAVES_OUT):
            return reason.removesuffix(_LEAVES_OUT)
        return {"enable_conv2d is False": "enable_conv2d=True", "conv_dim is 0": "conv_dim"}.get(
            reason, "include_patterns"
        )

    def ways_in(self, names: Collection[str]) -> list[str]:
        """Return the options that include as many as possible of the modules called `names`."""
        return sorted({option for name in names if (option := self.way_in(name))})
