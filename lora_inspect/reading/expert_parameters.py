"""Parameters that PEFT's `target_parameters` choose, and other adapted modules below their wrappers.

The keys do not name the parameter. PEFT wraps a module once for each chosen one, in the order in which the module has
them: the first is innermost, `experts.base_layer.base_layer`, and the last one is `experts` itself. vLLM's flat names
are the same. Other adapted modules are below its wrappers, `experts.base_layer.gate`, and have no such name in the
model. The modules that are made of them here have the name of the parameter, or that in the model. Source:
`_inject_parameters` and `MultiheadAttention` of PEFT, `FusedMoE3DWithLoRA` of vLLM.

The file also gives evidence on the output layers of torch's MultiheadAttention: PEFT adds their change twice.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.attention_lora import IN_PROJ, OUT_PROJ
from lora_inspect.algorithms.lora import ALGORITHM as LORA
from lora_inspect.algorithms.lora_experts import OF_MATRIX, lora_experts
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import Evidence, RawProblem
from lora_inspect.reading.peft.saved_tensors import BELOW, without_wrappers
from lora_inspect.reading.state import Reading
from lora_inspect.sentences import some

if TYPE_CHECKING:
    from lora_inspect.reading.peft.config_lookup import FoundConfig

# What classes of transformers call the parameters of all experts, in the order in which they have them.
PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
# The orders of parameters that are known: these, and that of torch's MultiheadAttention without a fused one.
_ORDERS = (PARAMETERS, ("q_proj_weight", "k_proj_weight", "v_proj_weight"))
# What the module with these parameters is called, and those of it that vLLM's flat names speak of.
_PARENT, _FLAT = "experts", ("gate_up_proj", "down_proj")
_WEIGHT = "weight"
# A MultiheadAttention's parameters: the fused one, which is called as if it were that of a layer, and its own layer.
_FUSED, _FUSED_LAYER, _OUT = "in_proj_weight", "in_proj", "out_proj"
_SHOWN = 3
_WAY_OUT = "fetch the file that the trainer saved, or merge it with the program that trained it"


class _Wrapped(NamedTuple):
    """A module of the base, and the modules of the file that are its wrappers by how deep they are nested.

    `path` is that of the keys, and `in_model` that of the model. `inner` are modules of the file by their path below
    the wrappers.
    """

    path: str
    in_model: str
    by_depth: dict[int, Module]
    inner: dict[str, "_Wrapped"]

    @property
    def is_nested(self) -> bool:
        """True if a wrapper is within another one."""
        return any(self.by_depth)

    @property
    def is_experts(self) -> bool:
        """True if it has the name of a mixture's experts."""
        return self.path.rpartition(".")[2] == _PARENT

    @property
    def is_wrapper(self) -> bool:
        """True if the names alone show that the adapted object is not a layer of the model."""
        return self.is_experts or self.is_nested or bool(self.inner)

    @property
    def is_attention(self) -> bool:
        """True if it has the factors of a MultiheadAttention with fused query, key and value."""
        if self.is_nested or _OUT not in self.inner:
            return False
        (rows, width), (out, inputs) = _sizes(self), _sizes(self.inner[_OUT])
        return (rows, out, inputs) == (3 * width, width, width)

    @property
    def innermost_first(self) -> list[Module]:
        """The wrappers in the order in which they were made."""
        return [self.by_depth[depth] for depth in sorted(self.by_depth, reverse=True)]

    @property
    def keys(self) -> tuple[str, ...]:
        """Tensors of it."""
        return tuple(info.name for module in self.by_depth.values() for info in module.tensors)

    @property
    def is_whole(self) -> bool:
        """True if no wrapper is missing between the outermost and the innermost one."""
        return set(self.by_depth) == set(range(len(self.by_depth)))


def claim_wrapped(reading: Reading) -> Reading:
    """Claim parameters, and modules of the model, instead of the modules that the names of wrappers show."""
    claims, configs = reading.claims, reading.configs
    renamed: dict[str, Module] = {}
    findings = list(claims.findings)
    wrong: dict[str, list[_Wrapped]] = defaultdict(list)
    wrappers = _wrappers(claims.modules)
    done: set[str] = set()
    for wrapped in wrappers:
        if wrapped.path in done:
            continue
        found = _parameters(wrapped, [found for found in configs if _speaks(found, wrapped)])
        if isinstance(found, str):
            wrong[found].append(wrapped)
            continue
        if found is None:
            found = _of_attention(wrapped) if wrapped.is_attention else _in_model(wrapped)
            done |= {wrapped.inner[_OUT].path} if wrapped.is_attention else set()
        for module, own in found:
            if own.name != module.name and own.name.key in claims.modules:
                message = f"{own.name.key} has factors of its own and those of a layer around it; leave one out"
                findings.append(RawProblem("duplicate-tensor", message, wrapped.keys[:5]))
            else:
                renamed[module.name.key] = own
    for why, (first, *others) in wrong.items():
        more = f" and {len(others)} more modules" if others else ""
        findings.append(RawProblem("experts-ambiguous", f"{first.path}{more}: {why}", first.keys[:5]))
    modules = [renamed.get(name, module) for name, module in claims.modules.items()]
    claims = claims._replace(modules={module.name.key: module for module in modules}, findings=tuple(findings))
    return reading._replace(claims=claims)


def names_parameters(config: Mapping[str, Any]) -> list[str]:
    """Return the names in `target_parameters`; none if it is not a list of names."""
    names = config.get("target_parameters")
    return [name for name in names if isinstance(name, str) and name] if isinstance(names, list) else []


def lost_parameters(reading: "Reading") -> Iterator[RawProblem]:
    """Yield problems of configs that name parameters without any tensor in the file."""
    if any(finding.code == "experts-ambiguous" for finding in reading.claims.findings):
        return
    known = any(contribution.algorithm.packed for contribution in reading.contributions)
    paths = {one.config_path for one in reading.contributions}
    paths |= {f"{module.name.body}.{_WEIGHT}" for module in reading.modules.values()}
    for found in () if known else reading.configs:
        names = names_parameters(found.config)
        if names and not any(map(found.modules.is_parameter, paths)):
            says = (
                f"{found.where} names the target_parameters {some(names, _SHOWN)}, but the file has no tensor of them"
            )
            yield RawProblem("experts-ambiguous", f"{says}; {_WAY_OUT}")


def _wrappers(modules: Mapping[str, Module]) -> list[_Wrapped]:
    """Return the modules of a base with LoRA in them, by path."""
    found: dict[str, dict[int, Module]] = defaultdict(dict)
    for module in modules.values():
        if module.name.flat or not any(c.algorithm is LORA for c in module.contributions):
            continue
        end, depth = len(module.name.body), 0
        while module.name.body.endswith(BELOW, 0, end):
            end, depth = end - len(BELOW), depth + 1
        found[module.name.prefix + module.name.body[:end]][depth] = module
    wrappers: dict[str, _Wrapped] = {}
    for path in sorted(found, key=len):
        in_model, ends = without_wrappers(path, wrappers)
        own = wrappers[in_model] = _Wrapped(path, in_model, found[path], {})
        for end in ends:
            wrappers[in_model[:end]].inner[in_model[end + 1 :]] = own
    return list(wrappers.values())


def _speaks(found: "FoundConfig", wrapped: _Wrapped) -> bool:
    return found.peft_type == LORA.peft_type and wrapped.path.startswith(found.prefix)


def _sizes(wrapped: _Wrapped) -> tuple[int, int]:
    """Return (out, in) from its factors."""
    shapes = _lora_of(wrapped.by_depth[0]).shapes if 0 in wrapped.by_depth else {}
    return (shapes["up"][0], shapes["down"][1]) if shapes else (0, 0)


def _lora_of(module: Module) -> Contribution:
    return next(contribution for contribution in module.contributions if contribution.algorithm is LORA)


def _parameters(wrapped: _Wrapped, configs: "Sequence[FoundConfig]") -> list[tuple[Module, Module]] | str | None:
    """Return each wrapper with the module of its parameter; None if it wraps no parameter; or an error text.

    The list is empty if a pattern of the config was refused.
    """
    outermost = next(iter(wrapped.by_depth.values())).name
    body = wrapped.in_model.removeprefix(outermost.prefix)
    for found in configs:
        names = _chosen(wrapped, body, found)
        if found.modules.refused:
            return []
        if names and (len(names) != len(wrapped.by_depth) or not wrapped.is_whole):
            return (
                f"{found.where} names {len(names)} parameters of it ({', '.join(names)}), but {len(wrapped.by_depth)} "
                f"have factors here, so their assignment is unknown; {_WAY_OUT}"
            )
        if len(names) > 1 and not any(set(names) <= set(order) for order in _ORDERS):
            return f"the order of {' and '.join(names)} in its class is unknown; {_WAY_OUT}"
        if names:
            return _renamed(wrapped, body, names, found)
    if wrapped.is_attention or not wrapped.is_wrapper:
        return None
    if not configs:
        return (
            "these are factors of all experts of a layer, and adapter_config.json with their rank is "
            "missing; put it next to the file"
        )
    if wrapped.is_experts and wrapped.is_whole and len(wrapped.by_depth) == len(_FLAT):
        return _renamed(wrapped, body, _FLAT, configs[0])
    return (
        f"these are factors of a parameter that {configs[0].where} does not name in target_parameters; "
        "add its name there"
    )


def _chosen(wrapped: _Wrapped, body: str, found: "FoundConfig") -> list[str]:
    """Return the parameters of the module that the config chooses, in the order of its class.

    A name without its module's, as `in_proj_weight`, is a parameter of any module that no `target_modules` choose; the
    names of experts are for modules that hold some.
    """
    if not found.config.get("target_parameters"):
        return []
    chosen = found.modules.parameters_of(body, without_parent=wrapped.is_wrapper)
    if not (chosen or wrapped.is_wrapper or found.modules.is_target(body)):
        chosen = [name for name in found.modules.parameters_of(body, without_parent=True) if name not in PARAMETERS]
    if len(chosen) > len(wrapped.by_depth):
        own = [name for name in chosen if (name in PARAMETERS) == wrapped.is_experts]
        chosen = own if len(own) == len(wrapped.by_depth) else chosen
    known = [name for order in _ORDERS for name in order if name in chosen]
    return [*known, *(name for name in chosen if name not in known)]


def _renamed(
    wrapped: _Wrapped, body: str, names: Sequence[str], found: "FoundConfig"
) -> list[tuple[Module, Module]] | str:
    """Return each wrapper with the module of its parameter, or an error text."""
    pairs = []
    for module, name in zip(wrapped.innermost_first, names, strict=True):
        path = f"{body}.{name}"
        rank = found.modules.rank(path)
        lora = _lora_of(module)
        rows = lora.factors["down"].shape[0]
        if rank is None or rows % rank:
            says = "impossible" if rank is None else rank
            return (
                f"A of {name} has {rows} rows, rank times experts, but its rank in {found.where} is "
                f"{says}; put the config that was saved with the file next to it"
            )
        is_matrix = rows == rank and name not in PARAMETERS
        has_more = lora.factors.keys() != {"down", "up"} or lora.magnitude or lora.rows or module.alpha
        if len(module.contributions) > 1 or has_more:
            return f"{name} has more than the factors of LoRA, and PEFT trains nothing else on a parameter; {_WAY_OUT}"
        algorithm = OF_MATRIX if is_matrix else lora_experts(rows // rank)
        if algorithm.formula and (wrong := algorithm.formula.check(lora.shapes)):
            return f"{name}: {wrong}; {_WAY_OUT}"
        layer = {_WEIGHT: body, _FUSED: f"{body}.{_FUSED_LAYER}"}.get(name, path)
        own = module.name._replace(body=layer)
        pairs.append((module, Module(own, (lora._replace(module=own, algorithm=algorithm, in_config=path),))))
    return pairs


def _of_attention(wrapped: _Wrapped) -> list[tuple[Module, Module]]:
    """Return both layers of a MultiheadAttention, which have one rank and one alpha in its config."""
    whole, out = wrapped.by_depth[0], wrapped.inner[_OUT].by_depth[0]
    body = wrapped.in_model.removeprefix(whole.name.prefix)
    name = whole.name._replace(body=f"{body}.{_FUSED_LAYER}")
    factors = {role: info for one in whole.contributions for role, info in one.factors.items()}
    fused = _lora_of(whole)._replace(module=name, algorithm=IN_PROJ, factors=factors, in_config=body)
    own = name._replace(body=f"{body}.{_OUT}")
    algorithms = {LORA.name: OUT_PROJ}
    of_out = tuple(
        one._replace(module=own, algorithm=algorithms.get(one.algorithm.name, one.algorithm), in_config=body)
        for one in out.contributions
    )
    return [(whole, Module(name, (fused,))), (out, out._replace(name=own, contributions=of_out))]


def _in_model(wrapped: _Wrapped) -> list[tuple[Module, Module]]:
    """Return a layer below the wrappers of its parent module under its name in the model."""
    if wrapped.path == wrapped.in_model or wrapped.by_depth.keys() != {0}:
        return []
    module = wrapped.by_depth[0]
    name = module.name._replace(body=wrapped.in_model.removeprefix(module.name.prefix))
    own = tuple(one._replace(module=name) for one in module.contributions)
    return [(module, module._replace(name=name, contributions=own))]


def about_attention(reading: Reading) -> Reading:
    """Add the number of outputs of attention that PEFT counts twice to the evidence."""
    count = sum(one.algorithm is OUT_PROJ for one in reading.contributions)
    if not count:
        return reading
    says = f"PEFT adds the change of {count} modules twice, as each is the out_proj of a MultiheadAttention"
    return reading.with_evidence([Evidence("scale", says, "names and shapes")])
