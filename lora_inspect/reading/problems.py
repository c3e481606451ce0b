"""What is wrong with an adapter, in words that name the key and the way out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_inspect import algorithms
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD
from lora_inspect.reading import peft_config
from lora_inspect.reading.claim import Claims
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.reading.evidence import Problem, RsloraReading, close
from lora_inspect.reading.scales import PATTERN_REFUSED
from lora_inspect.reading.trainers import NETWORK_KEY

# What our training network says of PiSSA weights that are a plain LoRA on the original base.
INITIAL_FACTORS_KEY, INCLUDED = "lora_inspect.initial_factors", "included"

# The way out where this version cannot compute what a file says.
_OWN_PROGRAM = "merge it with the program that trained it"
_OWN_NETWORK = "merge it in Python with `merge_to` of lora_inspect.networks.{}, which trained it"
# How the keys of metadata begin that say how alpha and rank are to be read.
_DECIDING_METADATA = ("lora_inspect.", "lora_adapter_metadata", "ss_network_", "ss_alpha_", "ss_rank_", "ss_init_")
# What a setting is against evidence that it cannot change.
REPEATS, CONTRADICTS = "setting-repeats", "setting-contradicts"
# The options that settle what a scale waits for.
_OPTIONS = {"alpha": "--alpha N", "rslora": "--rslora yes|no"}


def of_configs(configs: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str]) -> list[Problem]:
    """What the configs and the metadata say that makes the tensors something else than plain LoRA factors."""
    problems: list[Problem] = []
    for where, config in configs.items():
        method = config.get("peft_type", peft_config.LORA_TYPE)
        if not any(found.formula and found.peft_type == method for found in algorithms.ALGORITHMS.values()):
            message = f"{where} says {method}, an algorithm that is not built yet; {_OWN_PROGRAM}"
            problems.append(Problem("algorithm", "error", message))
        if init := peft_config.residual_init(config):
            problems.append(_residual(where, init))
        for says in peft_config.foreign_settings(config):
            message = f"{where}: {says}, which is not built yet; {_OWN_PROGRAM}"
            problems.append(Problem("peft-setting", "error", message))
    if init := residual_init(metadata):
        problems.append(_residual("metadata ss_init_lora_weights", init))
    return problems


def of_patterns(refused: Mapping[str, str | None]) -> list[Problem]:
    """Patterns of configs, by where these stand, that are not compared with modules; None where all are."""
    return [
        Problem("pattern", "error", f"{where}: {says}; {_way_out(says)}") for where, says in refused.items() if says
    ]


def _way_out(refused: str) -> str:
    if refused.startswith("target_modules "):
        return "name the modules in a list, or the file adapter_model.safetensors if the two belong together"
    return "write the plain module path instead"


def of_shards(file_metadata: Mapping[str, Mapping[str, str]]) -> list[Problem]:
    """Metadata that decides what the tensors mean, where the files of a set contradict each other."""
    said: dict[str, tuple[str, str]] = {}
    problems = []
    for file, metadata in file_metadata.items():
        for key in filter(lambda key: key.startswith(_DECIDING_METADATA), metadata):
            first, value = said.setdefault(key, (file, metadata[key]))
            if value != metadata[key]:
                message = (
                    f"{first} and {file} are parts of one adapter with different values of {key}; fetch the set again"
                )
                problems.append(Problem("shards-contradict", "error", message))
    return problems


def residual_init(metadata: Mapping[str, str]) -> str | None:
    """The initialisation that left the adapter on a residual base, by its metadata; None where there is none."""
    init = metadata.get("ss_init_lora_weights", "")
    return init if init.startswith("pissa") and metadata.get(INITIAL_FACTORS_KEY) != INCLUDED else None


def _residual(where: str, init: str) -> Problem:
    message = (
        f"{where} says the {init} initialisation, so the tensors change a residual base, not the original one; "
        "convert the adapter to plain LoRA with the program that trained it"
    )
    return Problem("residual-base", "error", message)


def of_algorithms(modules: Iterable[Module], metadata: Mapping[str, str]) -> list[Problem]:
    """Algorithms that are recognised but not computed; files of our own network are merged by it."""
    by_name: dict[str, list[str]] = {}
    for module in modules:
        for contribution in module.contributions:
            if contribution.algorithm.formula is None:
                keys = by_name.setdefault(contribution.algorithm.name, [])
                keys.append(next(iter(contribution.factors.values())).name)
    return [
        Problem(
            "algorithm",
            "error",
            f"{algorithms.by_name(name).title} is not built yet ({len(keys)} modules, {keys[0]}); "
            f"{_OWN_NETWORK.format(name) if NETWORK_KEY in metadata else _OWN_PROGRAM}",
            tuple(keys[:5]),
        )
        for name, keys in by_name.items()
    ]


def open_settings(contributions: Iterable[Contribution]) -> tuple[str, ...]:
    """The settings that the scales of contributions wait for: "alpha", "rslora", both or neither."""
    unknown = [c for c in contributions if c.algorithm.formula and c.scale is None]
    alpha = any(contribution.alpha is None for contribution in unknown)
    rule = any(contribution.rslora is None and contribution.rank != 1 for contribution in unknown)
    return (*(("alpha",) if alpha else ()), *(("rslora",) if rule else ()))


def of_scales(modules: Iterable[Module]) -> list[Problem]:
    """Modules whose scale is unknown, by the reason, and all that settles them."""
    modules = list(modules)
    by_reason: dict[str, list[str]] = {}
    for module in modules:
        for contribution in module.contributions:
            if contribution.algorithm.formula and contribution.scale is None:
                by_reason.setdefault(contribution.why, []).append(module.name.key)
    missing = open_settings(c for module in modules for c in module.contributions)
    way_out = " and ".join(_OPTIONS[name] for name in missing)
    return [
        Problem(
            "scale-unknown",
            "error",
            f"the scale of {keys[0]}{_and_more(keys)} is unknown: {why}; "
            + ("write it anew" if why == PATTERN_REFUSED else f"give {way_out}"),
            tuple(keys[:5]),
        )
        for why, keys in by_reason.items()
    ]


def of_schemes(claims: Claims) -> list[Problem]:
    """Keys that follow several naming schemes."""
    names = sorted({module.name.scheme for module in claims.modules.values()})
    if len(names) < 2:
        return []
    return [Problem("mixed-schemes", "warning", f"the keys follow {len(names)} naming schemes: {', '.join(names)}")]


def of_unclaimed(claims: Claims) -> list[Problem]:
    """Tensors beside the modules that nobody claims."""
    if not claims.unclaimed or not claims.modules:
        return []
    keys = claims.unclaimed
    message = f"{len(keys)} tensors belong to no known algorithm ({keys[0]}{', …' if len(keys) > 1 else ''})"
    return [Problem("unclaimed", "warning", message, tuple(keys[:5]))]


def of_rule_setting(modules: Iterable[Module], stated: Sequence[RsloraReading], rslora: bool | None) -> list[Problem]:
    """What the rslora setting says against the evidence: it settles what the file leaves open, and no more."""
    if rslora is None:
        return []
    setting = f"rslora={'yes' if rslora else 'no'}"
    read = [c for module in modules for c in module.contributions if c.rank is not None]
    if not read:
        return [Problem(CONTRADICTS, "error", f"{setting} cannot apply, as no module has a rank; leave it out")]
    if all(contribution.alpha is None and contribution.scale is not None for contribution in read):
        message = f"{setting} cannot apply to {read[0].module.key}, which has {read[0].why}; leave it out"
        return [Problem(CONTRADICTS, "error", message)]
    if any(not reading.settled for reading in stated):
        return []
    contradicting = next((reading for reading in stated if reading.value != rslora), None)
    if contradicting is None:
        source = stated[0].source.replace("_", " ")
        return [Problem(REPEATS, "note", f"{setting} repeats what its {source} says")]
    rule = RANK_STABILISED if contradicting.value else STANDARD
    message = f"its {contradicting.source.replace('_', ' ')} says {rule}, which {setting} contradicts; leave it out"
    return [Problem(CONTRADICTS, "error", message)]


def of_alpha_setting(modules: Iterable[Module], alpha: float) -> list[Problem]:
    """What the alpha setting says against alphas that are known; `modules` are read without it."""
    known = [c for module in modules for c in module.contributions if c.rank is not None]
    if any(contribution.alpha is None and contribution.scale is None for contribution in known):
        return []
    others = [c.alpha for c in known if c.alpha is not None and not close(c.alpha, alpha)]
    absent = next((contribution for contribution in known if contribution.alpha is None), None)
    if others:
        message = f"it says alpha {others[0]:g}, which alpha={alpha:g} contradicts; leave it out"
    elif absent:
        message = f"alpha={alpha:g} cannot apply to {absent.module.key}, which has {absent.why}; leave it out"
    elif not known:
        message = f"alpha={alpha:g} cannot apply, as no module has a rank; leave it out"
    else:
        return [Problem(REPEATS, "note", f"alpha={alpha:g} repeats the alpha that it has")]
    return [Problem(CONTRADICTS, "error", message)]


def of_hint(rslora: RsloraReading) -> list[Problem]:
    """The hint, which is a note and never applied."""
    return [Problem("rslora-hint", "note", rslora.hint.sentence())] if rslora.hint else []


def _and_more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more modules" if len(keys) > 1 else ""
