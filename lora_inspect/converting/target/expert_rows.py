"""The modules of an output that splits the experts of a layer, or joins them.

An adapter has them in one pair of factors for the parameter of all experts, as PEFT does for `target_parameters`. Or it
has a pair for each layer of each expert, as PEFT does if the experts are modules. vLLM reads both. The correspondence
of the family relates the names. Only a base shows which way round the factors of all experts are, and which of the rows
are those of gate and up.

The classes of transformers 5 have the experts of a layer in `mlp.experts.gate_up_proj` and `mlp.experts.down_proj`. The
files of most have `mlp.experts.{i}.gate_proj` for them, those of Mixtral's line `block_sparse_moe.experts.{i}.w1`.
Source: the conversion mapping of transformers 5.24, and the classes.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.lora_experts import lora_experts
from lora_inspect.architectures.correspondence import Correspondence, Link
from lora_inspect.architectures.rows import Interleaved, Runs
from lora_inspect.converting.target.target_layout import Destination, ManyLayers, OneLayer, Source
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.match import Matching
from lora_inspect.matching.placement import Placement, storage_of
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.model_config import config_beside
from lora_inspect.reading.identify import adapter_candidates, certain_correspondence
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.peft.saved_tensors import BELOW
from lora_inspect.schemes.record import ModuleName

# The `model_type` of a config of the line.
_KINDS = frozenset(("kimi_linear", "minimax", "minimax_m2", "mixtral", "phimoe"))
_NORMS = ("self_attn.q_norm.weight", "post_attention_layernorm.weight")
_FEED_FORWARD, _EXPERTS = "mlp.", "mlp.experts."
# What tells a layer of the line where there is no config: which of those norms it has, and what beside its experts.
_LAYERS = (
    {"post_attention_layernorm.weight", "mlp.gate.weight"},  # Mixtral, MiniMax
    {*_NORMS, "mlp.gate.weight", "mlp.e_score_correction_bias"},  # MiniMax-M2
    {"post_attention_layernorm.weight", "mlp.router.weight"},  # PhiMoE
)


def is_block_sparse(kinds: Collection[str], layer: Collection[str]) -> bool:
    """Return True if a model is of this line, by the kinds in its config or by the names in one of its layers."""
    if kinds:
        return not _KINDS.isdisjoint(kinds)
    told = {
        name for name in layer if name in _NORMS or (name.startswith(_FEED_FORWARD) and not name.startswith(_EXPERTS))
    }
    return told in _LAYERS


_PEFT = "peft"
# The parameter whose wrapper is the innermost one where that of the other is there too.
_INNER, _OUTER = "gate_up_proj", "down_proj"
# What stands in a path behind the module that holds the experts, and what that one is called in Mixtral's line.
_HELD, _BLOCK_SPARSE = ".experts.", ".block_sparse_moe."


def with_single_experts(
    adapter: Adapter, base: Checkpoint | None, matching: Matching | None
) -> tuple[Destination, ...]:
    """Return the modules of the output with a pair of factors for every layer of every expert.

    Raises LoraInspectError without a base, for a parameter that it lacks, or if no family has names for layers.
    """
    path = adapter.checkpoint.path
    if not any(_of_experts(module) for module in adapter.modules.values()):
        raise RefusedError(path, "no module has the factors of all experts of a layer", "leave --layout out")
    if base is None or matching is None:
        raise RefusedError(
            path,
            "the base is needed to assign the rows of its factors to experts",
            "give --base BASE, the base that it was trained on",
        )
    placed: dict[str, list[Placement]] = defaultdict(list)
    for found in matching.targets.values():
        for one in found:
            placed[one.contribution.module.key].append(one)
    correspondence = certain_correspondence(adapter_candidates(adapter))
    destinations: list[Destination] = []
    for module in adapter.modules.values():
        if not _of_experts(module):
            destinations.append(Destination(module, (Source(module),)))
            continue
        if not placed[module.name.key]:
            raise RefusedError(
                path, f"{base.path} has no parameter {module.name.key}", "name the base that it was trained on"
            )
        destinations += _layers(module, placed[module.name.key], base, correspondence, adapter)
    holders = {one.module.name.body.partition(_HELD)[0] for one in destinations if one.experts}
    return tuple(one if one.experts else _name_like_holders(one, holders, correspondence) for one in destinations)


def with_all_experts(adapter: Adapter) -> tuple[Destination, ...]:
    """Return the modules of the output with one pair of factors for a parameter of all experts.

    Raises LoraInspectError if there are none to put together, and for names that are not PEFT's.
    """
    path = adapter.checkpoint.path
    correspondence = certain_correspondence(adapter_candidates(adapter))
    groups: dict[str, list[_Layer]] = defaultdict(list)
    kept: list[Destination] = []
    for module in adapter.modules.values():
        found = next(correspondence.links_of_expert(module.name.body), None)
        if found is None:
            kept.append(Destination(module, (Source(module),)))
            continue
        if module.name.scheme != _PEFT:
            raise RefusedError(
                path,
                f"{module.name.key} is of the {module.name.scheme} scheme, but only PEFT's names can hold all "
                "experts at once",
                "leave --layout out",
            )
        link, expert = found
        groups[module.name.prefix + link.path].append(_Layer(module, link, expert))
    if not groups:
        raise RefusedError(path, "none of its modules is the layer of one expert", "leave --layout out")
    if other := next((key for key in groups if key in adapter.modules), None):
        raise RefusedError(
            path, f"{other} already has the factors of all experts", "leave the factors of single experts out"
        )
    return (*kept, *(_parameter(key, layers, set(groups), adapter) for key, layers in groups.items()))


class _Layer(NamedTuple):
    """A module of one expert, and the link that leads to the parameter of all."""

    module: Module
    link: Link
    expert: int


def _of_experts(module: Module) -> bool:
    return module.contributions[0].algorithm.packed


def _parameter(key: str, layers: Sequence[_Layer], keys: set[str], adapter: Adapter) -> Destination:
    """Return the module of all experts that the layers are joined in."""
    first = layers[0]
    relation, experts = first.link.relation, 1 + max(layer.expert for layer in layers)
    contributions = [_only_lora(layer.module, adapter) for layer in layers]
    sizes = {(c.shape[0], c.shape[1]) for c in contributions}
    seen = {(layer.expert, layer.link.part) for layer in layers}
    rows, inputs = next(iter(sizes))
    if len(sizes) > 1 or len(seen) < len(layers) or rows is None or inputs is None:
        raise RefusedError(
            adapter.checkpoint.path,
            f"the single-expert layers of {key} appear twice or differ in size, so they cannot form one parameter",
            "leave --layout out",
        )
    whole = rows * len(relation.parts)
    arranged = relation.arrangement.runs(whole, inputs) if relation.arrangement else (Runs(0, rows),)
    if arranged is None:
        raise RefusedError(adapter.checkpoint.path, f"{key} has no rows for the layers of single experts")
    parent, _, leaf = key.rpartition(".")
    is_inner = leaf == _INNER and f"{parent}.{_OUTER}" in keys
    name = first.module.name._replace(body=key.removeprefix(first.module.name.prefix))
    module = _made_of(contributions[0], name, parent + BELOW * is_inner, experts)
    places = tuple((layer.expert, layer.link.part, arranged[layer.link.part]) for layer in layers)
    return Destination(
        module, tuple(Source(layer.module) for layer in layers), experts=ManyLayers(experts, whole, places)
    )


def _layers(
    module: Module, placed: Sequence[Placement], base: Checkpoint, correspondence: Correspondence, adapter: Adapter
) -> Iterator[Destination]:
    """Yield the modules of single experts that a parameter is split into."""
    contribution = placed[0].contribution
    links = list(correspondence.links_of_experts(module.name.body))
    if len(placed) == 1 and contribution.algorithm.experts > 1:
        cuts = _cuts_of_parameter(placed[0], links, base)
    else:
        cuts = _cuts_of_layers(placed, links)
    if not cuts:
        raise RefusedError(
            adapter.checkpoint.path,
            f"lora-inspect does not know the names of the single-expert layers of {module.name.key}",
            "leave --layout out",
        )
    for path, cut in cuts.items():
        name = module.name._replace(body=path)
        made = _made_of(contribution, name, name.key, 0)
        yield Destination(made, (Source(module),), experts=cut)


def _cuts_of_parameter(placed: Placement, links: Sequence[Link], base: Checkpoint) -> Mapping[str, OneLayer]:
    """Return the layers by path, for a base with all experts in one parameter."""
    experts, target = placed.contribution.algorithm.experts, placed.place.target
    storage = storage_of(target.name, base)
    _, stored_rows, columns = base.tensors[target.name].shape
    rows, inputs = (columns, stored_rows) if storage.transposed else (stored_rows, columns)
    turned = placed.contribution.settings["turned"] != storage.transposed
    found: dict[str, OneLayer] = {}
    for link in _published(links, target.name, base):
        arrangement = link.relation.arrangement
        if arrangement and storage.interleaved:
            arrangement = Interleaved(len(link.relation.parts))
        arranged = arrangement.runs(rows, inputs) if arrangement else (Runs(0, rows),)
        if arranged is None:
            return {}
        for expert in range(experts):
            found[link.path.replace("{i}", str(expert))] = OneLayer(expert, arranged[link.part].inverted, turned)
    return found


def _published(links: Sequence[Link], parameter: str, base: Checkpoint) -> list[Link]:
    """Return the links to the names that the published checkpoints of the model have for the layers."""
    layer = parameter[: parameter.find(".mlp.") + 1]
    names = [name.removeprefix(layer) for name in base.tensors if name.startswith(layer)]
    config = config_beside(base)
    found = is_block_sparse(config.kinds if config else (), names)
    first = next((link for link in links if (_BLOCK_SPARSE in link.path) == found), None)
    return [link for link in links if first and link.relation == first.relation]


def _name_like_holders(
    destination: Destination, holders: Collection[str], correspondence: Correspondence
) -> Destination:
    """Rename a module that is no expert's as the modules with the experts of the output are named."""
    module = destination.module
    for link in correspondence.links(module.name.body):
        if link.relation.arrangement is None and link.path.rpartition(".")[0] in holders:
            return destination._replace(module=module._replace(name=module.name._replace(body=link.path)))
    return destination


def _cuts_of_layers(placed: Sequence[Placement], links: Sequence[Link]) -> Mapping[str, OneLayer]:
    """Return the layers by path, for a base with single experts, under the base's names."""
    contribution = placed[0].contribution
    rows = sum(one.place.runs.rows if one.place.runs else one.place.shape[0] for one in placed)
    of_expert = rows // contribution.algorithm.experts
    found: dict[str, OneLayer] = {}
    for one in placed:
        path = one.place.target.name.removesuffix(".weight")
        runs = one.place.runs or Runs(0, one.place.shape[0])
        expert, source = divmod(runs.source, of_expert)
        for link in links:
            own = link.path.replace("{i}", str(expert))
            if path.endswith(own[own.rindex(".layers.") if ".layers." in own else 0 :]):
                found[own] = OneLayer(expert, runs._replace(source=source), contribution.settings["turned"])
    return found if len(found) == len(placed) else {}


def _only_lora(module: Module, adapter: Adapter) -> Contribution:
    """Return the LoRA of a layer; raise LoraInspectError if it has anything else."""
    (first, *others) = module.contributions
    if others or first.algorithm is not lora.ALGORITHM or first.magnitude or first.rows or len(first.shape) != 2:
        raise RefusedError(
            adapter.checkpoint.path,
            f"{module.name.key} has more than the factors of a Linear LoRA, but all experts at once can have "
            "only those",
            "leave --layout out",
        )
    return first


def _made_of(contribution: Contribution, name: ModuleName, wrapper: str, experts: int) -> Module:
    """Return a module with the contribution under other names; `wrapper` is the part before the suffixes."""
    suffixes = lora.DIALECTS[_PEFT]
    factors = {role: info._replace(name=wrapper + suffixes[role]) for role, info in contribution.factors.items()}
    algorithm = lora_experts(experts) if experts else lora.ALGORITHM
    return Module(
        name, (contribution._replace(module=name, algorithm=algorithm, factors=factors, settings={}, in_config=""),)
    )
