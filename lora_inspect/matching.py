"""Which base weight each contribution changes: the base's own names, spelled as the adapter spells them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from lora_inspect import schemes
from lora_inspect.adapter import Adapter
from lora_inspect.architectures.patterns import counterparts
from lora_inspect.base_names import BASE_PREFIXES, is_weight
from lora_inspect.checkpoint import Checkpoint
from lora_inspect.contribution import Contribution, Module
from lora_inspect.dtypes import PLAIN_FLOATS
from lora_inspect.errors import LoraInspectError
from lora_inspect.header import TensorInfo
from lora_inspect.identify import adapter_candidates, base_candidates, described, identify_adapter, may_be_one
from lora_inspect.quantisation import scale_beside

# What stands in a base instead of weights where several of them share a number.
_PACKED_SUFFIXES = (".qweight", ".weight_packed")


@dataclass(frozen=True, slots=True)
class Matching:
    """Contributions by the name of the base tensor that they change, and the modules without one."""

    targets: dict[str, list[Contribution]]
    unmatched: tuple[Module, ...]


def match(adapter: Adapter, base: Checkpoint, only: str | None = None) -> Matching:
    """Finds the target of every module of the adapter (of the component `only`).

    Raises LoraInspectError where a module fits two base tensors or a weight of another shape or kind.
    """
    modules = [module for module in adapter.modules.values() if only in (None, module.name.component)]
    if only is not None and not modules:
        present = ", ".join(sorted({module.name.component for module in adapter.modules.values()}))
        raise LoraInspectError(f"{adapter.checkpoint.path}: it has no component {only}; it has {present}.")
    weights = [info for info in base.tensors.values() if is_weight(info)]
    detection = identify_adapter(adapter)
    same = detection.architecture.same if detection else ()
    kinds = {(module.name.scheme, module.name.component, module.name.prefix) for module in modules}
    tables = {kind: _names(weights, *kind, same) for kind in kinds}
    # A config's fan_in_fan_out speaks of all layers at once, so it decides only where nothing better is known: PEFT
    # itself ignores it for layers of the other kind.
    transposed = detection.layout.transposed if detection else None
    targets: dict[str, list[Contribution]] = defaultdict(list)
    unmatched: list[Module] = []
    for module in modules:
        name = module.name
        found = tables[name.scheme, name.component, name.prefix].get(name.key, [])
        if len(found) > 1:
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {name.key} fits both {found[0].name} and {found[1].name} of {base.path}; "
                "use a base that holds one of them."
            )
        if not found:
            unmatched.append(module)
            continue
        if taken := targets.get(found[0].name):
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {taken[0].module.key} and {name.key} both change {found[0].name} of "
                f"{base.path}; leave one of them out."
            )
        for contribution in module.contributions:
            if transposed is not None and contribution.is_linear:
                leaf = found[0].name.split(".")[-2]
                contribution = contribution._replace(transposed=leaf in transposed)
            _check_target(contribution, found[0], adapter, base)
            targets[found[0].name].append(contribution)
    return Matching(dict(targets), tuple(unmatched))


def accept_unmatched(adapter: Adapter, base: Checkpoint, matching: Matching, allowed: bool) -> list[str]:
    """The keys of the adapter that change nothing; raises LoraInspectError where they must not be."""
    path = adapter.checkpoint.path
    if not matching.targets:
        first = matching.unmatched[0]
        raise LoraInspectError(f"{path}: no module fits {base.path}; {_suggestion(first, base)}.")
    if allowed:
        return [module.name.key for module in matching.unmatched] + list(adapter.unclaimed)
    if adapter.unclaimed:
        keys = adapter.unclaimed
        raise LoraInspectError(
            f"{path}: {len(keys)} tensors belong to no known algorithm ({keys[0]}); --allow-unmatched leaves them out."
        )
    if not matching.unmatched:
        return []
    missing = _missing_components(matching)
    if missing:
        present = {change.module.component for changes in matching.targets.values() for change in changes}
        parts = ", ".join(f"{component} ({count} modules)" for component, count in sorted(missing.items()))
        raise LoraInspectError(
            f"{path}: {base.path} does not hold {parts}; --only {sorted(present)[0]} merges the rest."
        )
    first = matching.unmatched[0]
    raise LoraInspectError(
        f"{path}: {len(matching.unmatched)} of {len(adapter.modules)} modules have no target in {base.path}; "
        f"{_suggestion(first, base)}; --allow-unmatched leaves them out."
    )


def _missing_components(matching: Matching) -> dict[str, int]:
    """Components without a single target and their modules; empty where another component lacks some too."""
    present = {change.module.component for changes in matching.targets.values() for change in changes}
    counts = Counter(module.name.component for module in matching.unmatched)
    return {} if present & counts.keys() else dict(counts)


def _suggestion(module: Module, base: Checkpoint) -> str:
    packed = next((name for name in base.tensors if name.endswith(_PACKED_SUFFIXES)), None)
    if packed:
        return f"its weights are packed ({packed}); merge into an F32, F16 or BF16 version of the base"
    names = _nearest(module, base)
    if not names:
        return f"nothing in it resembles {module.name.key}, so the adapter is for another model"
    return f"{module.name.key} comes nearest to {' or '.join(names)}"


def _nearest(module: Module, base: Checkpoint, count: int = 3) -> list[str]:
    """Names of base weights that resemble the module's, most similar first."""
    import difflib  # only an error needs it

    weights = [info.name for info in base.tensors.values() if is_weight(info)]
    paths = {name.removesuffix(".weight").replace(".", "_"): name for name in weights}
    wanted = module.name.body.replace(".", "_")
    return [paths[name] for name in difflib.get_close_matches(wanted, paths, count, cutoff=0.5)]


def _names(
    weights: Iterable[TensorInfo], scheme: str, component: str, prefix: str, same: tuple[tuple[str, str], ...]
) -> dict[str, list[TensorInfo]]:
    """Module name as the adapter spells it -> the base weights that are spelled so, over every base prefix.

    A base in one of the two layouts whose modules are the `same` is found under the names of the other as well.
    """
    spell = schemes.by_name(scheme).module
    table: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in weights:
        path = info.name[: -len(".weight")]
        for base_prefix in BASE_PREFIXES.get(component, ("",)):
            if path.startswith(base_prefix):
                own = path[len(base_prefix) :]
                for name in dict.fromkeys((own, *counterparts(same, own))):
                    table[spell(name, prefix)].append(info)
    return table


def _check_target(contribution: Contribution, target: TensorInfo, adapter: Adapter, base: Checkpoint) -> None:
    name = contribution.module.key
    if target.dtype not in PLAIN_FLOATS:
        raise LoraInspectError(
            f"{base.path}: {target.name} is stored as {target.dtype}, codes that a delta cannot be added to; "
            "merge into an F32, F16 or BF16 version of the base."
        )
    if scale := scale_beside(target.name, base.tensors):
        raise LoraInspectError(
            f"{base.path}: {target.name} is quantised ({scale} scales it), so no delta can be added to it; "
            "merge into an F32, F16 or BF16 version of the base."
        )
    if contribution.rows is not None:
        _check_slices(contribution, target, adapter, base)
        return
    shape = contribution.shape[::-1] if contribution.transposed else contribution.shape
    if _squeeze(shape) != _squeeze(target.shape):
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {name} changes a weight of {list(shape)}, but {target.name} of {base.path} "
            f"has {list(target.shape)}; {_difference(adapter, base)}."
        )


def _check_slices(contribution: Contribution, target: TensorInfo, adapter: Adapter, base: Checkpoint) -> None:
    if contribution.transposed:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {contribution.module.key} is split into slices of rows, but {target.name} of "
            f"{base.path} is stored as (in, out); convert the adapter --to-standard first."
        )
    siblings = adapter.modules[contribution.module.key].contributions
    covered = max(sibling.rows[1] for sibling in siblings if sibling.rows)
    columns = contribution.factors["down"].shape[1]
    if (covered, columns) != target.shape:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: the slices of {contribution.module.key} cover [{covered}, {columns}], but "
            f"{target.name} of {base.path} has {list(target.shape)}; {_difference(adapter, base)}."
        )


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Out and in features and the kernel without trailing ones: a 1x1 convolution is a Linear."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


def _difference(adapter: Adapter, base: Checkpoint) -> str:
    """Why shapes do not fit, where the names and widths tell it."""
    ours, theirs = adapter_candidates(adapter), base_candidates(base)
    if ours and theirs and not may_be_one(ours, theirs):
        return f"this is an adapter of {described(ours)} on a base of {described(theirs)}"
    return "the adapter is for another model or size"
