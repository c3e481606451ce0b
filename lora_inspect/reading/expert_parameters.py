"""Parameters of all experts that PEFT trains as one, taken on the evidence of its config.

The keys do not name the parameter. PEFT wraps a module once for each that `target_parameters` choose, in the order in
which the module has them: what is wrapped first is innermost, `experts.base_layer.base_layer`, and the last one is
`experts` itself. vLLM's flat names are the same. The modules that are made of them here are called like the parameter.
Source: `_inject_parameters` of PEFT, `FusedMoE3DWithLoRA` of vLLM.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.lora import ALGORITHM as LORA
from lora_inspect.algorithms.lora_experts import lora_experts
from lora_inspect.listing import some
from lora_inspect.reading.contribution import Module
from lora_inspect.reading.problem import Finding
from lora_inspect.records import NamedTuple

if TYPE_CHECKING:
    from lora_inspect.reading.claim import Claims
    from lora_inspect.reading.file_reading import FileReading
    from lora_inspect.reading.found_configs import FoundConfig

BELOW = ".base_layer"
# What classes of transformers call the parameters of all experts, in the order in which they have them.
PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
# What the module with these parameters is called, and those of it that vLLM's flat names speak of.
_PARENT, _FLAT = "experts", ("gate_up_proj", "down_proj")
_WEIGHT = "weight"
_SHOWN = 3
_WAY_OUT = "fetch the file that the trainer saved, or merge it with the program that trained it"


class _Wrapped(NamedTuple):
    """A module of the base, and the modules of the file that are its wrappers by how deep they are nested."""

    path: str
    by_depth: dict[int, Module]

    @property
    def is_nested(self) -> bool:
        """Whether there is a wrapper within another one."""
        return any(self.by_depth)

    @property
    def is_experts(self) -> bool:
        """Whether it is called as the experts of a mixture are."""
        return self.path.rpartition(".")[2] == _PARENT

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
        """Whether no wrapper lacks between the outermost and the innermost one."""
        return set(self.by_depth) == set(range(len(self.by_depth)))


def claim_experts(claims: "Claims", configs: "Sequence[FoundConfig]") -> "Claims":
    """The claims with the parameters of all experts in the place of the wrappers around them."""
    renamed: dict[str, Module] = {}
    findings = list(claims.findings)
    wrong: dict[str, list[_Wrapped]] = defaultdict(list)
    for wrapped in _wrappers(claims.modules):
        found = _parameters(wrapped, [found for found in configs if _speaks(found, wrapped)])
        if isinstance(found, str):
            wrong[found].append(wrapped)
            continue
        for module, parameter in found:
            if parameter.name != module.name and parameter.name.key in claims.modules:
                message = f"{parameter.name.key} has factors of its own beside those of all experts; leave one out"
                findings.append(Finding("twice", message, wrapped.keys[:5]))
            else:
                renamed[module.name.key] = parameter
    for why, (first, *others) in wrong.items():
        more = f" and {len(others)} more modules" if others else ""
        findings.append(Finding("experts", f"{first.path}{more}: {why}", first.keys[:5]))
    modules = [renamed.get(name, module) for name, module in claims.modules.items()]
    return claims._replace(modules={module.name.key: module for module in modules}, findings=tuple(findings))


def names_parameters(config: Mapping[str, Any]) -> list[str]:
    """The names in `target_parameters`; none where it is no list of names."""
    names = config.get("target_parameters")
    return [name for name in names if isinstance(name, str) and name] if isinstance(names, list) else []


def lost_parameters(reading: "FileReading") -> Iterator[Finding]:
    """Configs whose parameters of experts the file has nothing of."""
    known = any(contribution.algorithm.packed for contribution in reading.contributions)
    if known or any(finding.code == "experts" for finding in reading.claims.findings):
        return
    bodies = [module.name.body for module in reading.modules.values()]
    for found in reading.configs:
        names = names_parameters(found.config)
        if names and not any(found.modules.is_parameter(f"{body}.{_WEIGHT}") for body in bodies):
            says = f"{found.where} names the target_parameters {some(names, _SHOWN)}, but no tensor of them is there"
            yield Finding("experts", f"{says}; {_WAY_OUT}")


def _wrappers(modules: Mapping[str, Module]) -> list[_Wrapped]:
    """Modules of a base that LoRA is in, by path."""
    found: dict[str, dict[int, Module]] = defaultdict(dict)
    for module in modules.values():
        if module.name.flat or not any(c.algorithm is LORA for c in module.contributions):
            continue
        end, depth = len(module.name.body), 0
        while module.name.body.endswith(BELOW, 0, end):
            end, depth = end - len(BELOW), depth + 1
        found[module.name.prefix + module.name.body[:end]][depth] = module
    return [_Wrapped(path, by_depth) for path, by_depth in found.items()]


def _speaks(found: "FoundConfig", wrapped: _Wrapped) -> bool:
    return found.peft_type == LORA.peft_type and wrapped.path.startswith(found.prefix)


def _parameters(wrapped: _Wrapped, configs: "Sequence[FoundConfig]") -> list[tuple[Module, Module]] | str:
    """Each wrapper with the module of its parameter; none where they are no wrappers; or what is wrong."""
    outermost = next(iter(wrapped.by_depth.values())).name
    body = wrapped.path.removeprefix(outermost.prefix)
    for found in configs:
        names = _chosen(wrapped, body, found)
        if found.modules.refused:
            return []
        if names and (len(names) != len(wrapped.by_depth) or not wrapped.is_whole):
            return (
                f"{found.where} names {len(names)} parameters of it ({', '.join(names)}) and {len(wrapped.by_depth)} "
                f"have factors here, so that it is not known which are whose; {_WAY_OUT}"
            )
        if len(names) > 1 and not set(names) <= set(PARAMETERS):
            return f"it is not known in which order its class has {' and '.join(names)}; {_WAY_OUT}"
        if names:
            return _renamed(wrapped, body, names, found)
    if not (wrapped.is_experts or wrapped.is_nested):
        return []
    if not configs:
        return (
            "these are factors of all experts of a layer at once, whose rank stands in adapter_config.json, which is "
            "not there: put it beside the file"
        )
    if wrapped.is_experts and wrapped.is_whole and len(wrapped.by_depth) == len(_FLAT):
        return _renamed(wrapped, body, _FLAT, configs[0])
    return (
        f"these are factors of a parameter of it, which {configs[0].where} does not name in target_parameters: "
        "write there which one it is"
    )


def _chosen(wrapped: _Wrapped, body: str, found: "FoundConfig") -> list[str]:
    """The parameters of the module that the config chooses, in the order in which its class has them."""
    if not found.config.get("target_parameters"):
        return []
    chosen = found.modules.parameters_of(body, without_parent=wrapped.is_experts or wrapped.is_nested)
    known = [name for name in PARAMETERS if name in chosen]
    return [*known, *(name for name in chosen if name not in known)]


def _renamed(
    wrapped: _Wrapped, body: str, names: Sequence[str], found: "FoundConfig"
) -> list[tuple[Module, Module]] | str:
    """Each wrapper with the module of its parameter; or what is wrong with it."""
    pairs = []
    for module, name in zip(wrapped.innermost_first, names, strict=True):
        path = f"{body}.{name}"
        rank = found.modules.rank(path)
        lora = next(contribution for contribution in module.contributions if contribution.algorithm is LORA)
        rows = lora.factors["down"].shape[0]
        if rank is None or isinstance(rank, bool) or rank < 1 or rows % rank:
            says = "no whole number" if rank is None or isinstance(rank, bool) else rank
            return (
                f"A of {name} has {rows} rows, rank times experts, but its rank in {found.where} is {says}; put the "
                "config that was saved with the file beside it"
            )
        if name == _WEIGHT and rows == rank:
            continue
        has_more = lora.factors.keys() != {"down", "up"} or lora.magnitude or lora.rows or module.alpha
        if len(module.contributions) > 1 or has_more:
            return f"{name} has more than the factors of LoRA, which PEFT does not train on a parameter; {_WAY_OUT}"
        algorithm = lora_experts(rows // rank)
        if algorithm.formula and (wrong := algorithm.formula.check(lora.shapes)):
            return f"{name}: {wrong}; {_WAY_OUT}"
        own = module.name._replace(body=body if name == _WEIGHT else path)
        pairs.append((module, Module(own, (lora._replace(module=own, algorithm=algorithm),))))
    return pairs
