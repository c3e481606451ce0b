"""Which base weight each contribution changes: the base's own names, spelled as the adapter spells them."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.header import TensorInfo
from lora_inspect.matching.orientation import Orientation, orient
from lora_inspect.matching.orientation_answers import UNANSWERED, Answers
from lora_inspect.matching.place import Place, Placed
from lora_inspect.matching.target_weight import check_place
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base_names import NameTable
from lora_inspect.reading.contribution import Module
from lora_inspect.reading.identify import adapter_candidates


@dataclass(frozen=True, slots=True)
class Matching:
    """Contributions by the name of the base tensor that they change, each with its place there.

    `unmatched` are the modules without a target, `left_out` those of components that were not asked for.
    `orientations` say by target how each Linear weight is stored, and what decided it.
    """

    targets: dict[str, list[Placed]]
    unmatched: tuple[Module, ...]
    left_out: tuple[Module, ...] = ()
    orientations: dict[str, Orientation] = field(default_factory=dict)


def match(adapter: Adapter, base: Checkpoint, only: Collection[str] = (), transposed: Answers = UNANSWERED) -> Matching:
    """Finds the target of every module of the adapter, of the components `only` where some are named.

    `transposed` says by globs how the base stores those square weights that the evidence leaves open. Raises
    LoraInspectError where a module fits two base tensors or a weight of another shape or kind, or where an orientation
    stays open.
    """
    modules, left_out = _chosen(adapter, only)
    families = adapter_candidates(adapter)
    places, unmatched = _places(adapter, base, modules, families[0].architecture.same if len(families) == 1 else ())
    orientations = orient(places, base, [family.layout for family in families], transposed)
    targets: dict[str, list[Placed]] = defaultdict(list)
    for module, target in places:
        decided = orientations.get(target.name)
        for contribution in module.contributions:
            place = Place(target, contribution.rows, transposed=bool(decided and decided.transposed))
            check_place(Placed(contribution, place), adapter, base)
            targets[target.name].append(Placed(contribution, place))
    return Matching(dict(targets), unmatched, left_out, orientations)


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


def _places(
    adapter: Adapter, base: Checkpoint, modules: list[Module], same: tuple[tuple[str, str], ...]
) -> tuple[list[tuple[Module, TensorInfo]], tuple[Module, ...]]:
    """Each module with the base weight that it changes, and the modules without one."""
    kinds = {(module.name.scheme, module.name.component, module.name.prefix) for module in modules}
    tables = {kind: NameTable(base, *kind, same) for kind in kinds}
    places: list[tuple[Module, TensorInfo]] = []
    taken: dict[str, Module] = {}
    unmatched: list[Module] = []
    for module in modules:
        name = module.name
        found = tables[name.scheme, name.component, name.prefix].find(name)
        if len(found) > 1:
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {name.key} fits both {found[0].name} and {found[1].name} of {base.path}; "
                "use a base that holds one of them."
            )
        if not found:
            unmatched.append(module)
            continue
        (target,) = found
        if target.name in taken:
            raise LoraInspectError(_both_change(taken[target.name], module, target, adapter, base))
        taken[target.name] = module
        places.append((module, target))
    return places, tuple(unmatched)


def _both_change(first: Module, second: Module, target: TensorInfo, adapter: Adapter, base: Checkpoint) -> str:
    both = f"{adapter.checkpoint.path}: {first.name.key} and {second.name.key} both change {target.name} of {base.path}"
    components = sorted({first.name.component, second.name.component})
    if len(components) == 1:
        return f"{both}; leave one of them out."
    choices = " or ".join(f"--only {component}" for component in components)
    return f"{both}, which holds one of {' and '.join(components)}; say which one it is with {choices}."
