"""Which base weight each contribution changes: the base's own names, spelled as the adapter spells them."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.architectures.correspondence import one_to_one
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.header import TensorInfo
from lora_inspect.matching.orientation import Orientation, orient
from lora_inspect.matching.orientation_answers import UNANSWERED, Answers
from lora_inspect.matching.place import Place, Placed
from lora_inspect.matching.target_weight import check_place
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base_names import NameTable, is_weight
from lora_inspect.reading.coded_weights import BaseCodecs
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.reading.identify import adapter_candidates


@dataclass(frozen=True, slots=True)
class Matching:
    """Contributions by the name of the base tensor that they change, each with its place there.

    `unmatched` are the modules without a target, `left_out` those of components that were not asked for, `absent` the
    contributions whose layer is there without the parameter that they change. `orientations` say by target how each
    Linear weight is stored, and what decided it.
    """

    targets: dict[str, list[Placed]]
    unmatched: tuple[Module, ...]
    left_out: tuple[Module, ...] = ()
    absent: tuple[Contribution, ...] = ()
    orientations: dict[str, Orientation] = field(default_factory=dict)


class _Pair(NamedTuple):
    """A module of the adapter, and the path of the base's module that it is."""

    module: Module
    path: str


def match(adapter: Adapter, base: Checkpoint, only: Collection[str] = (), transposed: Answers = UNANSWERED) -> Matching:
    """Finds the target of every module of the adapter, of the components `only` where some are named.

    `transposed` says by globs how the base stores those square weights that the evidence leaves open. Raises
    LoraInspectError where a module fits two of the base or a tensor of another shape or kind, or where an orientation
    stays open.
    """
    modules, left_out = _chosen(adapter, only)
    families = adapter_candidates(adapter)
    pairs, unmatched = _pairs(
        adapter, base, modules, one_to_one(families[0].architecture.correspondence) if len(families) == 1 else ()
    )
    layers = [(pair.module, base.tensors[f"{pair.path}.{WEIGHT}"]) for pair in pairs if _is_layer(pair, base)]
    orientations = orient(layers, base, [family.layout for family in families], transposed)
    targets: dict[str, list[Placed]] = defaultdict(list)
    absent: list[Contribution] = []
    base_codecs = BaseCodecs(base)
    for module, path in pairs:
        for contribution in module.contributions:
            target = base.tensors.get(f"{path}.{contribution.algorithm.parameter}")
            if target is None:
                absent.append(contribution)
                continue
            place = Place(target, contribution.rows, transposed=_is_transposed(contribution, target, orientations))
            check_place(Placed(contribution, place), adapter, base, base_codecs)
            targets[target.name].append(Placed(contribution, place))
    return Matching(dict(targets), unmatched, left_out, tuple(absent), orientations)


def _is_transposed(contribution: Contribution, target: TensorInfo, decided: Mapping[str, Orientation]) -> bool:
    """Whether the base stores what the contribution changes as (in, out)."""
    if contribution.algorithm.transposed is not None:
        return contribution.algorithm.transposed
    return target.name in decided and decided[target.name].transposed


def _chosen(adapter: Adapter, only: Collection[str]) -> tuple[list[Module], tuple[Module, ...]]:
    """The modules of the components that are asked for, and the others."""
    modules = list(adapter.modules.values())
    if not only:
        return modules, ()
    chosen = [module for module in modules if module.name.component in only]
    if not chosen:
        present = ", ".join(sorted({module.name.component for module in modules}))
        raise LoraInspectError(f"{adapter.checkpoint.path}: it has no component {' or '.join(only)}; it has {present}.")
    return chosen, tuple(module for module in modules if module.name.component not in only)


def _pairs(
    adapter: Adapter, base: Checkpoint, modules: list[Module], same: tuple[tuple[str, str], ...]
) -> tuple[list[_Pair], tuple[Module, ...]]:
    """Each module with the base's module that it changes, and the modules without one."""
    kinds = {(module.name.scheme, module.name.component, module.name.prefix) for module in modules}
    tables = {kind: NameTable(base, *kind, same) for kind in kinds}
    pairs: list[_Pair] = []
    taken: dict[str, Module] = {}
    unmatched: list[Module] = []
    for module in modules:
        name = module.name
        found = tables[name.scheme, name.component, name.prefix].find(name)
        if len(found) > 1:
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {name.key} fits both {_shown(found[0], base)} and "
                f"{_shown(found[1], base)} of {base.path}; "
                "use a base that holds one of them."
            )
        if not found or not any(f"{found[0]}.{c.algorithm.parameter}" in base.tensors for c in module.contributions):
            unmatched.append(module)
            continue
        (path,) = found
        if path in taken:
            raise LoraInspectError(_both_change(taken[path], module, path, adapter, base))
        taken[path] = module
        pairs.append(_Pair(module, path))
    return pairs, tuple(unmatched)


def _is_layer(pair: _Pair, base: Checkpoint) -> bool:
    """Whether the weight of the base's module is a matrix or a kernel that the module changes."""
    changes_weight = any(contribution.algorithm.parameter == WEIGHT for contribution in pair.module.contributions)
    weight = base.tensors.get(f"{pair.path}.{WEIGHT}")
    return changes_weight and weight is not None and is_weight(weight)


def _both_change(first: Module, second: Module, path: str, adapter: Adapter, base: Checkpoint) -> str:
    what = f"{_shown(path, base)} of {base.path}"
    both = f"{adapter.checkpoint.path}: {first.name.key} and {second.name.key} both change {what}"
    components = sorted({first.name.component, second.name.component})
    if len(components) == 1:
        return f"{both}; leave one of them out."
    choices = " or ".join(f"--only {component}" for component in components)
    return f"{both}, which holds one of {' and '.join(components)}; say which one it is with {choices}."


def _shown(path: str, base: Checkpoint) -> str:
    """The weight of the base's module, or where it has none the module."""
    return weight if (weight := f"{path}.{WEIGHT}") in base.tensors else path
