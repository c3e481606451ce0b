"""The architecture of an adapter and of a base, by the names and widths of their modules.

Every module gets its canonical dotted path: as written, or the only one that an underscored name can mean.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import product
from typing import Any

from lora_inspect.architectures.correspondence import UNKNOWN, Correspondence, Relation
from lora_inspect.architectures.detection import Detection, candidates
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.record import Architecture
from lora_inspect.caching import Remembered
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import BASE_PREFIXES, is_weight, path_of
from lora_inspect.reading.keys.groups import group_equal
from lora_inspect.reading.keys.suffixes import canonical_path, table_of
from lora_inspect.reading.model import contribution
from lora_inspect.reading.shown_families import shown_candidates
from lora_inspect.schemes.record import MODEL, ModuleName
from lora_inspect.sentences import listed

# A base has embeddings, norms and heads beside the layers that the tables of architectures list.
_BASE_SHARE = 0.5


def adapter_candidates(adapter: Adapter) -> tuple[Detection, ...]:
    """Return every family that an adapter may be of, or the one of them that its settings name."""
    found = shown_candidates(adapter.checkpoint, adapter.scheme, adapter.modules)
    named = adapter.settings.architecture
    # A name that is none of theirs is a problem of the file, and narrows nothing.
    return tuple(one for one in found if one.architecture.name == named) or found


def base_candidates(checkpoint: Checkpoint) -> tuple[Detection, ...]:
    """Return every family that a base may be of, by its weights' names without their most common prefix."""
    weights = [info for info in checkpoint.tensors.values() if is_weight(info)]
    prefixes = sorted(BASE_PREFIXES[MODEL], key=len, reverse=True)
    counts = Counter(next(prefix for prefix in prefixes if info.name.startswith(prefix)) for info in weights)
    if not counts:
        return ()
    common = counts.most_common(1)[0][0]
    # What looks like a prefix may be the root of the model itself.
    return _candidates_below(common, weights, checkpoint) or _candidates_below("", weights, checkpoint)


def _candidates_below(prefix: str, weights: Sequence[TensorInfo], checkpoint: Checkpoint) -> tuple[Detection, ...]:
    modules = [
        (path_of(info)[len(prefix) :], info.shape[0], info.shape[1]) for info in weights if info.name.startswith(prefix)
    ]
    return candidates(modules, checkpoint.metadata, minimum_share=_BASE_SHARE)


def identify_adapter(adapter: Adapter) -> Detection | None:
    """Return the one family of an adapter; None if none or several match."""
    found = adapter_candidates(adapter)
    return found[0] if len(found) == 1 else None


def described(found: Sequence[Detection]) -> str:
    """Describe the candidates by title and size in a sentence: `FLUX.1 or Chroma`."""
    return listed([str(detection) for detection in found], "or")


def may_be_one(ours: Iterable[Detection], theirs: Iterable[Detection]) -> bool:
    """Return True if two files may have the same family and size; an unknown size matches any."""
    return any(
        our.architecture is their.architecture and (None in (our.size, their.size) or our.size == their.size)
        for our, their in product(ours, theirs)
    )


def common_families(ours: Sequence[Detection], theirs: Sequence[Detection]) -> tuple[Detection, ...]:
    """Return the families that both an adapter and a base may have, in the base's layout; else the adapter's own."""
    names = {candidate.architecture.name for candidate in ours}
    return tuple(candidate for candidate in theirs if candidate.architecture.name in names) or tuple(ours)


def common_correspondence(families: Sequence[Detection]) -> Correspondence:
    """Return the relations of layouts that hold in all families, for two names that are both in files.

    A relation holds if each family with layers of both its names has it.
    """
    return _common(families, _has_both_sides)


def certain_correspondence(families: Sequence[Detection]) -> Correspondence:
    """Return the relations of layouts that hold in all families, to look for the other names of one layout.

    A relation holds if each family with layers of either of its names has it.
    """
    return _common(families, _has_a_side)


# Whether a family with layers of these patterns has what a relation is about.
_Has = Callable[[Relation, Collection[str]], bool]


def _common(families: Sequence[Detection], has: _Has) -> Correspondence:
    architectures = dict.fromkeys(family.architecture for family in families)
    if len(architectures) < 2:
        return next((architecture.correspondence for architecture in architectures), UNKNOWN)
    return Correspondence(lambda: _common_relations(architectures, has))


def _common_relations(architectures: Collection[Architecture], has: _Has) -> Collection[Relation]:
    known = dict.fromkeys(relation for one in architectures for relation in one.correspondence.relations)
    for architecture in architectures:
        own = set(architecture.correspondence.relations)
        paths = patterns_of((path for layout in architecture.layouts for path in layout.named), ".")
        known = {relation: None for relation in known if relation in own or not has(relation, paths)}
    return known


def _has_both_sides(relation: Relation, patterns: Collection[str]) -> bool:
    return pattern_of(relation.whole, ".") in patterns and any(pattern_of(p, ".") in patterns for p in relation.parts)


def _has_a_side(relation: Relation, patterns: Collection[str]) -> bool:
    return any(pattern_of(path, ".") in patterns for path in (relation.whole, *relation.parts))


# The paths of modules by their names, for the layouts that files were of which were read last.
_MOST_NAMES = 10_000
_paths: Remembered[Any, dict[ModuleName, str | None]] = Remembered(16)


def with_paths(adapter: Adapter, families: Sequence[Detection]) -> Adapter:
    """Return the adapter with the path of each module; None where the `families` leave it open."""
    own = tuple(family.layout.named for family in families)
    others = tuple(layout.named for family in families for layout in family.architecture.layouts)
    given = group_equal(adapter.modules)
    if given.layouts == (own, others):
        return adapter
    names = [module.name for module in given.values()]
    known = _paths.of((own, others), dict)
    if len(known) + len(names) > _MOST_NAMES:  # none of those that other threads are reading is taken away
        known = {}
        if len(names) <= _MOST_NAMES:
            _paths.put((own, others), known)
    if new := [name for name in names if name not in known]:
        tables = [list(map(table_of, layouts)) for layouts in (own, others)]
        known.update([(name, canonical_path(name, *tables)) for name in new])
    named = given.with_values(contribution.with_paths(given.values(), [known[name] for name in names]))
    named.layouts = own, others
    return adapter._replace(modules=named)
