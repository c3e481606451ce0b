"""The scale of a module, or the reason why it is unknown, from its numbers, its config and the scale rule."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lora_inspect import schemes
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD, neutral_alpha, scale_of
from lora_inspect.reading.model import evidence
from lora_inspect.reading.model.contribution import ONCE, Contribution, Counted, Module, Scaling
from lora_inspect.reading.model.evidence import (
    CONTRADICTS,
    LOKR_FLAG,
    REPEATS,
    Evidence,
    RawProblem,
    RsloraReading,
    close,
)
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft import peft_config
from lora_inspect.reading.peft.config_lookup import FoundConfig
from lora_inspect.reading.state import Reading
from lora_inspect.sentences import counted, some

# Why a scale is unknown that no setting settles, each with the way out.
PATTERN_REFUSED = "a pattern of the config is refused"
RANK_MISSING = "PEFT keeps alpha and this rank in adapter_config.json, which is missing"
CONFIG_MISSING = "PEFT keeps alpha and the scale rule in adapter_config.json, which is missing"
RANK_UNREADABLE = "the config's rank is impossible"
WAYS_OUT = {
    PATTERN_REFUSED: "correct the pattern",
    RANK_MISSING: "put that file next to the adapter",
    RANK_UNREADABLE: "correct the config",
    CONFIG_MISSING: "put that file next to the adapter, or give {}",
}


def about_parts(counts: Iterable[tuple[Counted, int]]) -> list[Evidence]:
    """Return evidence on layers that were trained in parts and saved as one, with the number of such modules."""
    split: Counter[int] = Counter()
    for part, modules in counts:
        if part.parts > 1:
            split[part.parts] += modules
    return [
        Evidence(
            "scale",
            f"{modules} modules were trained in {parts} parts and saved as one: their alpha counts {parts} times",
            "metadata ss_network_args split_qkv",
        )
        for parts, modules in sorted(split.items())
    ]


def about_hidden_ranks(contributions: Iterable[Contribution], flags: Sequence[str]) -> list[Evidence]:
    """Return the evidence on modules that divide alpha by a rank that only a flag states."""
    if LOKR_FLAG not in flags:
        return []
    hidden = [c for c in contributions if c.algorithm.formula and c.rank and c.formula.rank(c.shapes) is None]
    if not hidden:
        return []
    says = f"{len(hidden)} modules have whole factors, and their program divides alpha by the largest dimension of w2"
    return [Evidence("scale", says, LOKR_FLAG)]


class ScaleSources(NamedTuple):
    """The sources of the scale of one contribution.

    `stored` is the number in the alpha tensor, None if it is not a plain number; `configs` are the LoraConfigs that
    apply to the module, `rule` says whether its scale is alpha/sqrt(rank), and `counted` how often the stored alpha
    counts. `hidden` says that alpha is divided by the hidden rank if the tensors show none.
    """

    module: Module
    stored: float | None
    configs: Sequence[FoundConfig]
    rule: RsloraReading
    counted: Counted = ONCE
    hidden: bool = False


def scalings_of(
    contributions: Sequence[Contribution], sources: Callable[[Contribution], ScaleSources], settings: Settings
) -> list[Scaling | None]:
    """Return the scaling of each contribution of a module; None for one that is only recognised.

    A contribution next to another one has that one's scale, but not its rank.
    """
    own = [
        None if one.algorithm.beside or not one.algorithm.formula else _scaling(one, sources(one), settings)
        for one in contributions
    ]
    if not any(one.algorithm.beside for one in contributions):
        return own
    bearers = {one.algorithm.name: scaling for one, scaling in zip(contributions, own, strict=True)}
    return [
        _without_rank(bearers[one.algorithm.beside]) if one.algorithm.beside else scaling
        for one, scaling in zip(contributions, own, strict=True)
    ]


def _without_rank(scaling: Scaling | None) -> Scaling | None:
    return scaling and scaling._replace(fan_in_fan_out=None, rank=None)


def _scaling(contribution: Contribution, sources: ScaleSources, settings: Settings) -> Scaling:
    """Return rank, alpha and scale, or the reason why the scale is unknown."""
    rank, open_rank = _rank(contribution, sources)
    rule = sources.rule.value
    found = sources.configs[0] if sources.configs else None
    stored_as = peft_config.fan_in_fan_out(found.config) if found and contribution.is_linear else None
    if open_rank:
        return Scaling(stored_as, rank, None, rule, None, open_rank)
    if rank is None:
        why = f"{contribution.algorithm.title} has no rank here to divide alpha by"
        alpha = sources.stored if contribution.algorithm.has_alpha else None
        return Scaling(stored_as, None, alpha, None, 1.0, why)
    alpha, why = _alpha(contribution, sources, rank)
    if why and settings.alpha is not None:
        alpha, why = settings.alpha, ""
    if why:
        return Scaling(stored_as, rank, alpha, rule, None, why)
    if alpha is None:
        why = f"no alpha, which means scale 1 in the {contribution.module.scheme} scheme"
        return Scaling(stored_as, rank, None, None, 1.0, why)
    if rule is None and rank > 1:
        cause = "conflicts" if sources.rule.source == "conflict" else "is missing"
        return Scaling(stored_as, rank, alpha, rule, None, f"the evidence for RS-LoRA {cause}")
    rslora = bool(rule)
    why = f"{alpha:g}/sqrt({rank})" if rslora else f"{alpha:g}/{rank}"
    if sources.counted.parts > 1 and sources.stored is not None:
        why += f", as alpha {sources.stored:g} counts for each of the {sources.counted.parts} saved parts"
    return Scaling(stored_as, rank, alpha, rslora, scale_of(alpha, rank, rslora), why)


def _rank(contribution: Contribution, sources: ScaleSources) -> tuple[int | None, str]:
    """Return the rank by which alpha is divided, None for none, with an empty reason; or the reason if unknown.

    If the tensors show no rank, the flag of a program or a config may say that there is one.
    """
    formula, scheme = contribution.formula, contribution.module.scheme
    rank = formula.rank(contribution.shapes)
    if rank is not None or formula.hidden_rank is None:
        return rank, ""
    if sources.hidden:
        return formula.hidden_rank(contribution.shapes), ""
    if not sources.configs:
        in_config = schemes.by_name(scheme).absent_alpha == "config" and not sources.module.alpha
        return None, RANK_MISSING if in_config else ""
    configured = sources.configs[0].modules.rank(contribution.config_path)
    if any(found.modules.refused for found in sources.configs):
        return None, PATTERN_REFUSED
    return configured, "" if configured else RANK_UNREADABLE


def _alpha(contribution: Contribution, sources: ScaleSources, rank: int) -> tuple[float | None, str]:
    """Return alpha with an empty reason, or None and the reason. (None, "") means no alpha in the scheme: scale 1."""
    theirs = [found for found in sources.configs if found.gives_rank(contribution)]
    configured = {found.where: found.modules.alpha(contribution.config_path) for found in theirs}
    if sources.module.alpha:
        alpha, why = _stored_alpha(sources.stored, configured)
        if alpha is None or sources.counted.contradiction:
            return None, why or sources.counted.contradiction
        return alpha * sources.counted.parts, ""
    if any(found.modules.refused for found in sources.configs):
        return None, PATTERN_REFUSED
    if theirs:
        return _configured_alpha(contribution, theirs[0], configured, rank, sources.rule.value)
    if sources.configs:
        expected = sources.configs[0].modules.rank(contribution.config_path)
        says = "is impossible" if expected is None else f"is {expected}"
        return None, f"the config's rank {says} but that of the tensors is {rank}, so the config does not match"
    if schemes.by_name(contribution.module.scheme).absent_alpha == "config":
        return None, CONFIG_MISSING
    return None, ""


def _stored_alpha(stored: float | None, configured: Mapping[str, float | None]) -> tuple[float | None, str]:
    if stored is None or not math.isfinite(stored):
        return None, "the stored alpha is not a finite number"
    if stored == 0:
        return None, "the stored alpha is 0, which programs read differently"
    for where, alpha in configured.items():
        if alpha is not None and not evidence.close(alpha, stored):
            return None, f"the stored alpha is {stored:g}, but {where} says alpha {alpha:g}"
    return stored, ""


def _configured_alpha(
    contribution: Contribution,
    found: FoundConfig,
    alphas: Mapping[str, float | None],
    rank: int,
    rslora: bool | None,
) -> tuple[float | None, str]:
    """Return the alpha of the configs and an empty reason; or None and the reason. `found` is the first config.

    It is unknown if they differ, and if the names say that a program has folded the scale into the factors.
    """
    configured = alphas[found.where]
    if configured is None:
        return None, "the config's lora_alpha is not a number"
    for where, alpha in alphas.items():
        if alpha is None or not evidence.close(alpha, configured):
            says = "no number" if alpha is None else f"alpha {alpha:g}"
            return None, f"{found.where} says alpha {configured:g}, but {where} says {says}"
    scheme = contribution.module.scheme
    # PEFT's names have no other place for alpha, and diffusers itself reads what it embeds: beside a pipeline's names
    # under their prefix, beside the bare ones that a model saves of itself without one.
    own = found.embedded and (scheme == "diffusers" or (scheme == "dotted" and not found.prefix))
    if own or schemes.by_name(scheme).absent_alpha == "config":
        return configured, ""
    if rslora is None and rank > 1:
        return None, f"no alpha means scale 1 in the {scheme} scheme, but {found.where} says alpha {configured:g}"
    scale = scale_of(configured, rank, bool(rslora))
    if math.isclose(scale, 1.0, rel_tol=1e-6):
        return configured, ""
    neutral = neutral_alpha(rank, bool(rslora))
    return None, (
        f"no alpha means scale 1 in the {scheme} scheme, but {found.where} says scale {scale:g} at rank {rank}: "
        f"alpha={neutral:.9g} means the first, alpha={configured:.9g} the second"
    )


# Modules whose scale is 1, as they have no alpha, among others that have one.
ALPHA_MISSING = "alpha-missing"
# Modules whose scale neither the file nor a setting gives.
SCALE_UNKNOWN = "scale-unknown"
# The options that settle what a scale waits for.
OPTIONS = {"alpha": "--alpha N", "rslora": "--rslora yes|no"}


def open_settings(contributions: Iterable[Contribution]) -> tuple[str, ...]:
    """Return the settings that the scales of contributions wait for: "alpha", "rslora", both or neither."""
    unknown = [c for c in contributions if c.rank is not None and c.scale is None]
    alpha = any(contribution.alpha is None for contribution in unknown)
    rule = any(contribution.rslora is None and contribution.rank != 1 for contribution in unknown)
    return (*(("alpha",) if alpha else ()), *(("rslora",) if rule else ()))


def unknown_scales(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of modules with an unknown scale, by the reason, with the settings that settle them."""
    by_reason: dict[str, list[str]] = {}
    unknown = [contribution for contribution in reading.contributions if contribution.scale is None]
    for contribution in unknown:
        if contribution.algorithm.formula and not contribution.algorithm.beside:
            by_reason.setdefault(contribution.why, []).append(contribution.module.key)
    way_out = " and ".join(OPTIONS[name] for name in open_settings(unknown))
    for why, keys in by_reason.items():
        fix = WAYS_OUT.get(why, "give {}").format(way_out)
        yield RawProblem(
            SCALE_UNKNOWN, f"the scale of {keys[0]}{_and_more(keys)} is unknown: {why}; {fix}", tuple(keys[:5])
        )


def _and_more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more modules" if len(keys) > 1 else ""


def rule_setting(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem if an rslora setting contradicts or repeats the evidence; it only settles an open question."""
    rslora = reading.settings.rslora
    if rslora is None:
        return
    setting = f"rslora={'yes' if rslora else 'no'}"
    ranked = [contribution for contribution in reading.contributions if contribution.rank is not None]
    read = [contribution for contribution in ranked if contribution.formula.rslora]
    contradicting = next((stated for stated in reading.stated if stated.value != rslora), None)
    if not read:
        what = "has RS-LoRA's rule" if ranked else "has a rank"
        yield RawProblem(CONTRADICTS, f"{setting} cannot apply, as no module {what}; leave it out")
    elif all(contribution.alpha is None and contribution.scale is not None for contribution in read):
        message = f"{setting} cannot apply to {read[0].module.key}, which has {read[0].why}; leave it out"
        yield RawProblem(CONTRADICTS, message)
    elif any(not stated.settled for stated in reading.stated):
        return
    elif contradicting is None:
        yield RawProblem(REPEATS, f"{setting} repeats what its {reading.stated[0].source.replace('_', ' ')} says")
    else:
        rule, source = RANK_STABILISED if contradicting.value else STANDARD, contradicting.source.replace("_", " ")
        yield RawProblem(CONTRADICTS, f"its {source} says {rule}, which {setting} contradicts; leave it out")


def alpha_setting(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem if an alpha setting contradicts or repeats alphas that are known without it."""
    alpha = reading.settings.alpha
    if alpha is None:
        return
    without = reading.scaled(reading.settings._replace(alpha=None)).values()
    known = [c for module in without for c in module.contributions if c.rank is not None]
    if any(contribution.alpha is None and contribution.scale is None for contribution in known):
        return
    others = [c.alpha for c in known if c.alpha is not None and not close(c.alpha, alpha)]
    absent = next((contribution for contribution in known if contribution.alpha is None), None)
    if others:
        message = f"it says alpha {others[0]:g}, which alpha={alpha:g} contradicts; leave it out"
        yield RawProblem(CONTRADICTS, message)
    elif absent:
        message = f"alpha={alpha:g} cannot apply to {absent.module.key}, which has {absent.why}; leave it out"
        yield RawProblem(CONTRADICTS, message)
    elif not known:
        yield RawProblem(CONTRADICTS, f"alpha={alpha:g} cannot apply, as no module has a rank; leave it out")
    else:
        yield RawProblem(REPEATS, f"alpha={alpha:g} repeats the alpha that it has")


def missing_alphas(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of modules without an alpha among others with one, in schemes where none means scale 1."""
    having: Counter[str] = Counter()
    missing: dict[str, list[str]] = defaultdict(list)
    for module in reading.modules.values():
        scheme = module.name.scheme
        if schemes.by_name(scheme).absent_alpha != "one" or not any(map(_takes_alpha, module.contributions)):
            continue
        if module.alpha:
            having[scheme] += 1
        else:
            missing[scheme].append(module.name.key)
    for scheme, keys in missing.items():
        if scheme in having:
            message = (
                f"the file has no alpha for {counted(len(keys), 'module')} ({some(keys, 1)}), which "
                f"means scale 1 there, but has one for {counted(having[scheme], 'module')}"
            )
            yield RawProblem(ALPHA_MISSING, message, tuple(keys[:5]))


def _takes_alpha(contribution: Contribution) -> bool:
    """Return True for a change of its own that divides its alpha by a rank."""
    algorithm = contribution.algorithm
    is_own = algorithm.formula is not None and not algorithm.beside
    return is_own and algorithm.has_alpha and contribution.rank is not None


def rslora_hint(reading: Reading) -> Iterator[RawProblem]:
    """Yield the hint as a note; it is never applied."""
    if reading.rslora.hint:
        read = "it is read as plain LoRA: should it be too weak as such, give --rslora yes"
        yield RawProblem("rslora-hint", f"{reading.rslora.hint.sentence()}; {read}")
