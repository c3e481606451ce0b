"""Modules without a target, and copies of base tensors in an adapter: an error with the way out, or a list.

PEFT writes `X.base_layer.weight` if an embedding or a head is a target, and `X.weight` if it was resized
(`save_embedding_layers`), trained or not: the config names the trained ones, and reading has taken those. Copies that
equal the base's tensor add nothing; others are a part of the model that the merge would lose. The file also checks a
base against the one that a file's magnitudes are recorded for.

Some language models have a head without a weight of its own: it uses that of the embedding, and bases hold it once. A
change of this weight changes both, while the adapter of PEFT works in one of them. With `ensure_weight_tying` PEFT
gives both the same factors, swapped and transposed. Source: transformers' `tie_word_embeddings`, the `_add_adapter` and
`update_layer` of PEFT's LoRA.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from lora_inspect import schemes
from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.match import Matching
from lora_inspect.maths.dora import OF_BASE
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import BASE_PREFIXES, NameTable, is_weight, leaf_of, path_of
from lora_inspect.reading.identify import adapter_candidates, base_candidates, described, may_be_one
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.peft.saved_tensors import BELOW, COPIED, BaseTensor
from lora_inspect.reading.scale.dora_evidence import norms_record
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import MODEL
from lora_inspect.sentences import listed

HEADS = ("lm_head", "embed_out")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "shared")
# The ends of transformers' names of models with a head.
CLASSES_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def has_head(base: Checkpoint) -> bool:
    """Return True if the base has a weight of a head."""
    return any(leaf_of(path_of(info)) in HEADS for info in base.tensors.values())


def is_embedding(name: str) -> bool:
    """Return True if a base tensor of this name is the weight of an embedding that a head may share."""
    return name.endswith(".weight") and name.split(".")[-2] in EMBEDDINGS


def shared_embedding(base: Checkpoint) -> str | None:
    """Return the weight of the embedding where no head has its own; None if there is a head, or no such embedding."""
    return None if has_head(base) else next(filter(is_embedding, base.tensors), None)


def repeats_embedding(module: Module, adapter: Adapter, base: Checkpoint) -> bool:
    """Return True if a module of a head repeats the change of the embedding that shares its weight."""
    if not module.name.body.endswith(HEADS) or not shared_embedding(base):
        return False
    return any(says_same(module, other) for other in adapter.modules.values() if other.name.body.endswith(EMBEDDINGS))


def says_same(module: Module, other: Module) -> bool:
    """Return True if both have the same single change: of an algorithm that ties heads, or of LoRA, transposed."""
    if len(module.contributions) != 1 or len(other.contributions) != 1:
        return False
    (ours,), (theirs,) = module.contributions, other.contributions
    if (ours.algorithm.name, theirs.algorithm.name) == ("lora", "lora_embedding"):
        return _is_turned(ours, theirs)
    if not ours.algorithm.ties or ours.algorithm is not theirs.algorithm or ours.settings != theirs.settings:
        return False
    pairs = ((info, theirs.factors.get(role)) for role, info in ours.factors.items())
    return all(one is not None and _same_numbers(info, one) for info, one in pairs)


def _is_turned(head: Contribution, embedding: Contribution) -> bool:
    """Return True if a LoRA of a head has the embedding's factors, swapped and transposed."""
    from lora_inspect.maths.tensors import load

    if head.magnitude or embedding.magnitude or head.rows or head.scale is None or head.scale != embedding.scale:
        return False
    pairs = [(head.factors[ours], embedding.factors[theirs]) for ours, theirs in (("down", "up"), ("up", "down"))]
    if any((one.dtype, one.shape) != (other.dtype, other.shape[::-1]) for one, other in pairs):
        return False
    return all(bool((load(one) == load(other).transpose(0, 1)).all()) for one, other in pairs)


def _same_numbers(info: TensorInfo, other: TensorInfo) -> bool:
    return (info.dtype, info.shape) == (other.dtype, other.shape) and _bytes_of(info) == _bytes_of(other)


def _bytes_of(info: TensorInfo) -> bytes:
    with InputFile(info.file, info.identity) as source:
        return bytes(source.read(info.start, info.nbytes))


_COMPARED_ELEMENTS = 1 << 20


def equal_copies(adapter: Adapter, base: Checkpoint, matching: Matching, tied: Mapping[str, str]) -> set[str]:
    """Return the unclaimed keys of the adapter with tensors equal to the base's.

    `tied` are the weights of the base by the modules of heads that share them with an embedding. Raises
    LoraInspectError for a copy of a base tensor that has other numbers.
    """
    equal: set[str] = set()
    for key, original in _copies(adapter, base, matching, tied):
        if _equal(adapter.checkpoint.tensors[key], original):
            equal.add(key)
            continue
        if BaseTensor.of(key).module.endswith(HEADS) and original.name == shared_embedding(base):
            raise RefusedError(
                adapter.checkpoint.path,
                f"{key} differs from {original.name}, which is the head of {base.path} too",
                "save the base with tie_word_embeddings false",
            )
        raise RefusedError(
            adapter.checkpoint.path,
            f"{key} differs from {original.name} of {base.path}, so the adapter was trained on another version of it",
            "use that version as the base, or leave the tensor out with --allow-unmatched",
        )
    return equal


def _copies(
    adapter: Adapter, base: Checkpoint, matching: Matching, tied: Mapping[str, str]
) -> Iterator[tuple[str, TensorInfo]]:
    """Yield each unclaimed key that is a copy of a tensor of the base, with that tensor."""
    targets = dict(tied) | {
        placed.contribution.module.key: name
        for name, found in matching.targets.items()
        for placed in found
        if placed.place.runs is None
    }
    table: NameTable | None = None
    for key in adapter.unclaimed:
        module, parameter, wrapper = BaseTensor.of(key)
        if not module or parameter not in COPIED:
            continue
        if wrapper == BELOW:
            target = targets.get(module)
            name = target and f"{target.rpartition('.')[0]}.{parameter}"
            if name in base.tensors:
                yield key, base.tensors[name]
        elif (
            not wrapper
            and parameter == "weight"
            and adapter.scheme == PEFT.name
            and (recognised := schemes.recognise(module)).scheme == PEFT.name
        ):
            table = table or NameTable(base, PEFT.name, recognised.component, recognised.prefix)
            found = table.find(recognised)
            if len(found) == 1:
                yield key, base.tensors[found[0].tensor(parameter)]
            elif not found and recognised.body.endswith(HEADS) and (shared := shared_embedding(base)):
                yield key, base.tensors[shared]


def _equal(copy: TensorInfo, original: TensorInfo) -> bool:
    """Return True if two tensors have the same shape and numbers, in any floating element types."""
    from lora_inspect.maths.torch_threads import load_torch

    load_torch()
    import torch

    from lora_inspect.maths.tensors import RowBlocks

    if copy.shape != original.shape or not {copy.dtype, original.dtype} <= PLAIN_FLOATS:
        return False
    ours, theirs = RowBlocks(_COMPARED_ELEMENTS), RowBlocks(_COMPARED_ELEMENTS)
    pairs = zip(ours.read(copy), theirs.read(original), strict=True)
    return all(torch.equal(first.double(), second.double()) for (_, first), (_, second) in pairs)


# What stands in a base instead of weights where several of them share a number.
_PACKED_SUFFIXES = (".qweight", ".weight_packed")
# How transformers stores the experts of gpt-oss in mxfp4: two codes a byte, and a scale for each block of them.
_BLOCKS, _SCALES = "_blocks", "_scales"
_SHOWN = 3
# Comparing takes longer than the product of two lengths; real names have some hundred characters.
_COMPARED_CHARACTERS = 500


def accept_unmatched(adapter: Adapter, base: Checkpoint, matching: Matching, allowed: bool) -> list[str]:
    """Return the keys of the adapter that change nothing; raises LoraInspectError if they must not be."""
    path = adapter.checkpoint.path
    repeated = tuple(one for one in matching.unmatched if repeats_embedding(one, adapter, base))
    matching = replace(matching, unmatched=tuple(one for one in matching.unmatched if one not in repeated))
    if not matching.targets:
        why, way_out = _why(matching, adapter, base)
        raise RefusedError(path, f"no module matches {base.path}: {why}", way_out)
    if allowed:
        absent = [f"{c.module.key} ({c.algorithm.title})" for c in matching.absent]
        return [module.name.key for module in matching.unmatched] + absent + list(adapter.unclaimed)
    used = equal_copies(adapter, base, matching, {one.name.key: shared_embedding(base) or "" for one in repeated})
    homeless = {module.name.key for module in matching.unmatched}
    if keys := [key for key in adapter.unclaimed if key not in used and BaseTensor.of(key).module not in homeless]:
        raise RefusedError(
            path,
            f"{len(keys)} tensors belong to no known algorithm ({keys[0]})",
            "leave them out with --allow-unmatched",
        )
    if matching.absent:
        first = matching.absent[0]
        raise RefusedError(
            path,
            f"{first.module.key} changes a {first.algorithm.parameter}, but its layer in {base.path} has none "
            f"({len(matching.absent)} such tensors)",
            "leave them out with --allow-unmatched",
        )
    if not matching.unmatched:
        return []
    fitting = _fitting(matching)
    missing = Counter(module.name.component for module in matching.unmatched)
    if not missing.keys() & fitting.keys():
        options = " ".join(f"--only {component}" for component in fitting)
        raise RefusedError(
            path,
            _absence(missing, adapter, base),
            f"give {options} to merge {in_components(fitting)} and leave out {in_components(missing)}",
        )
    count = len(matching.unmatched) + fitting.total()
    why, way_out = _why(matching, adapter, base)
    raise RefusedError(
        path,
        f"{len(matching.unmatched)} of {count} modules have no target in {base.path}: {why}",
        f"{way_out}, or leave out {in_components(missing)} with --allow-unmatched",
    )


def in_components(counts: Mapping[str, int]) -> str:
    """Return modules by component in words: "model (280 modules), text_encoder (72 modules)"."""
    return ", ".join(f"{component} ({count} modules)" for component, count in sorted(counts.items()))


def _fitting(matching: Matching) -> Counter[str]:
    """Return the modules that have a target, by component."""
    names = {placed.contribution.module for found in matching.targets.values() for placed in found}
    return Counter(sorted(name.component for name in names))


def _absence(missing: Counter[str], adapter: Adapter, base: Checkpoint) -> str:
    """Return a sentence on whole components without a target: how the base has them, or that it lacks them."""
    held = {component: how for component in missing if (how := _how_held(component, adapter, base))}
    absent = Counter({component: count for component, count in missing.items() if component not in held})
    parts = [f"{base.path} does not hold {in_components(absent)}"] if absent else []
    parts += [f"{base.path} holds {component} {how}" for component, how in held.items()]
    return ", and ".join(parts)


def _how_held(component: str, adapter: Adapter, base: Checkpoint) -> str | None:
    """Return how the base holds a component that the adapter's names do not find; None if there is no sign of it."""
    if component == MODEL and (packed := _packed(base)):
        return f"in packed weights ({packed})"
    if layout := _other_layout(component, adapter, base):
        return layout
    if component == MODEL and (families := base_candidates(base)):
        return f"as {described(families)}, with other names than the adapter's"
    prefix = _first_prefix(filter(None, BASE_PREFIXES.get(component, ())), base)
    return prefix and f"under other names than the adapter's ({prefix}…)"


def _other_layout(component: str, adapter: Adapter, base: Checkpoint) -> str | None:
    """Return the other layout of the adapter's family in which the base holds a component; None if not shown."""
    if component != MODEL:
        return None
    # The names of llama.cpp are looked for under those of every layout.
    for ours in () if adapter.scheme == GGUF.name else adapter_candidates(adapter):
        for theirs in base_candidates(base):
            if ours.architecture is theirs.architecture and ours.layout is not theirs.layout:
                return f"in the {theirs.layout.name} layout of {theirs}, not in the adapter's {ours.layout.name} one"
    return None


def _why(matching: Matching, adapter: Adapter, base: Checkpoint) -> tuple[str, str]:
    """Return the reason that the first module has no target, and the way out.

    A part of it lacks, or weights are packed, or of another layout or model.
    """
    module = matching.unmatched[0]
    if there := next((home.found for home in matching.partial if home.module is module), None):
        names = [one.path for one in there]
        has = listed(names) if len(names) <= _SHOWN else f"{len(names)} ({', '.join(names[:_SHOWN])}, …)"
        return (
            f"{module.name.key} stands for several layers there, but {base.path} has only {has}",
            "use a base that holds all of them",
        )
    algorithm = module.contributions[0].algorithm
    lacking = next((home for home in matching.lacking if home.module is module), None)
    if lacking and algorithm.parameter != WEIGHT:
        return (
            f"{module.name.key} ({algorithm.title}) changes the {algorithm.parameter} of {lacking.found[0].path}, "
            "which has none there, and a weight cannot replace it",
            "use the adapter in the program that trained it",
        )
    if module.name.body.endswith(HEADS) and (shared := shared_embedding(base)):
        return (
            f"{module.name.key} has no weight of its own there, as the head shares {shared}",
            "save the base with tie_word_embeddings false",
        )
    if all(contribution.algorithm.replaces for contribution in module.contributions):
        return f"{module.name.key} is saved whole to replace a weight that it lacks", "name a base that has it"
    if packed := _packed(base):
        return f"its weights are packed ({packed})", "merge into an F32, F16 or BF16 version of the base"
    if layout := _other_layout(module.name.component, adapter, base):
        return f"it holds {module.name.component} {layout}", "use a base in the adapter's layout"
    ours, theirs = adapter_candidates(adapter), base_candidates(base)
    if ours and theirs and not may_be_one(ours, theirs):
        return (
            f"the adapter is of {described(ours)}, but the base is of {described(theirs)}",
            "use a base of the adapter's model",
        )
    names = _nearest(module, base)
    if not names:
        return f"nothing in it resembles {module.name.key}", "use a base of the adapter's model"
    return f"{module.name.key} is most similar to {' or '.join(names)}", "check that the adapter is for this base"


def _packed(base: Checkpoint) -> str | None:
    """Return a packed weight of the base, with the name of its code where that is known; None if there is none."""
    if packed := next((name for name in base.tensors if name.endswith(_PACKED_SUFFIXES)), None):
        return packed
    blocks = (name for name in base.tensors if name.endswith(_BLOCKS))
    mxfp4 = next((name for name in blocks if f"{name.removesuffix(_BLOCKS)}{_SCALES}" in base.tensors), None)
    return mxfp4 and f"{mxfp4}, in mxfp4"


def _first_prefix(prefixes: Iterable[str], base: Checkpoint) -> str | None:
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in base.tensors)), None)


def _nearest(module: Module, base: Checkpoint, count: int = 3) -> list[str]:
    """Return the names of base weights that resemble the module's, most similar first."""
    import difflib  # only an error needs it

    weights: Iterable[str] = (info.name for info in base.tensors.values() if is_weight(info))
    paths = {
        name.removesuffix(".weight").replace(".", "_"): name for name in weights if len(name) <= _COMPARED_CHARACTERS
    }
    wanted = module.name.body.replace(".", "_")
    if len(wanted) > _COMPARED_CHARACTERS:
        return []
    return [paths[name] for name in difflib.get_close_matches(wanted, paths, count, cutoff=0.5)]


def other_base_notes(adapters: Iterable[Adapter], base: Checkpoint) -> list[str]:
    """Return a sentence for each adapter with a recorded weight that has other bytes in this base."""
    from lora_inspect.files.hashes import sha256  # with hashlib, which `compat` has no other use for

    notes = []
    for adapter in adapters:
        record = norms_record(adapter.checkpoint.metadata)
        weight = base.tensors.get(record.weight) if record and adapter.dora.norms == OF_BASE else None
        if record and weight and record.sha256 != sha256(weight):
            notes.append(
                f"{adapter.checkpoint.path}: its magnitudes are over the norms of "
                f"{record.base or 'another base'}, but {record.weight} there has other bytes than in "
                f"{base.path}; on another model its DoRA is not the trained one"
            )
    return notes
