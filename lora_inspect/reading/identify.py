"""The architecture of an adapter and of a base, by the names and widths of their modules."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import product

from lora_inspect.algorithms.record import BIAS, WEIGHT, Features
from lora_inspect.architectures.correspondence import UNKNOWN, Correspondence, Relation
from lora_inspect.architectures.detection import Detection, candidates
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.record import Architecture, is_parameter
from lora_inspect.architectures.text_encoders import TextEncoder, found_in
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.header import TensorInfo
from lora_inspect.listing import listed
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.alike_modules import alike
from lora_inspect.reading.base_names import BASE_PREFIXES, is_weight, path_of
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.schemes.record import MODEL, ModuleName

# A base has embeddings, norms and heads beside the layers that the tables of architectures list.
_BASE_SHARE = 0.5
# The second expert of Wan 2.2 is of the same architecture.
_MODELS = (MODEL, "model_2")


def adapter_candidates(adapter: Adapter) -> tuple[Detection, ...]:
    """Every family that an adapter may be of, by its model's modules and by the text encoders that it adapts.

    A GGUF header names it.
    """
    if adapter.scheme == GGUF.name:
        from lora_inspect.reading.gguf_layout import gguf_families

        return gguf_families(adapter.checkpoint)
    layers = _layers(adapter)
    modules = [(name.body, *features) for name, features in layers if name.component in _MODELS]
    encoders = {encoder: None for shown in _encoders(layers).values() for encoder in shown}
    return candidates(modules, adapter.checkpoint.metadata, encoders=encoders)


def text_encoders(adapter: Adapter) -> dict[str, tuple[TextEncoder, ...]]:
    """What the modules of each component show of the text encoder that it is."""
    return _encoders(_layers(adapter))


def _encoders(layers: Iterable[tuple[ModuleName, Features]]) -> dict[str, tuple[TextEncoder, ...]]:
    others: dict[str, list[tuple[str, int | None, int | None]]] = defaultdict(list)
    for name, features in layers:
        if name.component not in _MODELS:
            others[name.component].append((name.body, *features))
    return {component: found_in(modules) for component, modules in others.items()}


def _layers(adapter: Adapter) -> list[tuple[ModuleName, Features]]:
    """The names of the modules that are layers, and how wide they are, which is found once for those of one kind."""
    modules = alike(adapter.modules)
    found = [_features(first) if any(map(_is_of_layer, first.contributions)) else None for first in modules.firsts]
    layers: list[tuple[ModuleName, Features]] = []
    for module, kind in zip(modules.values(), modules.likeness.numbers, strict=True):
        features = found[kind]
        if features is not None and not is_parameter(module.name.body):
            layers.append((module.name, features))
    return layers


def base_candidates(checkpoint: Checkpoint) -> tuple[Detection, ...]:
    """Every family that a base may be of, by the names of its weights, their most common prefix removed."""
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
    """The one family of an adapter; None where nothing or too much fits."""
    found = adapter_candidates(adapter)
    return found[0] if len(found) == 1 else None


def described(found: Sequence[Detection]) -> str:
    """The candidates by title and size, as a sentence names them: `FLUX.1 or Chroma`."""
    return listed([str(detection) for detection in found], "or")


def may_be_one(ours: Iterable[Detection], theirs: Iterable[Detection]) -> bool:
    """Whether a candidate of one file may be of the family and size of one of the other; an unknown size may be any."""
    return any(
        our.architecture is their.architecture and (None in (our.size, their.size) or our.size == their.size)
        for our, their in product(ours, theirs)
    )


def common_families(ours: Sequence[Detection], theirs: Sequence[Detection]) -> tuple[Detection, ...]:
    """The families that an adapter and a base may both be of, in the base's layout; without any, the adapter's own."""
    names = {candidate.architecture.name for candidate in ours}
    return tuple(candidate for candidate in theirs if candidate.architecture.name in names) or tuple(ours)


def common_correspondence(families: Sequence[Detection]) -> Correspondence:
    """How layouts are related in the families, for names of both of which it is known that they are a file's.

    Those are the relations that each family has that has layers of both names.
    """
    return _common(families, _has_both_sides)


def certain_correspondence(families: Sequence[Detection]) -> Correspondence:
    """How layouts are related whichever of the families it is, for names of one layout whose others are looked for.

    Those are the relations that each family has that has a layer of either name.
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


def _is_of_layer(change: Contribution) -> bool:
    """Whether it changes what the tables of architectures list: matrices and kernels, not norms or heads."""
    algorithm = change.algorithm
    return algorithm.formula is None or (
        algorithm.parameter == WEIGHT and len(change.shape) > 1 and not algorithm.replaces
    )


def _features(module: Module) -> Features:
    """(out, in) of the module's weight, as far as any of its contributions tells."""
    told = [_features_of(contribution) for contribution in module.contributions]
    out_features = max((out for out, _ in told if out is not None), default=None)
    return out_features, next((columns for _, columns in told if columns is not None), None)


def _features_of(contribution: Contribution) -> Features:
    if contribution.algorithm.formula is None or contribution.algorithm.parameter not in (WEIGHT, BIAS):
        return None, None
    out_features, in_features = contribution.features
    return contribution.rows[1] if contribution.rows else out_features, in_features
