"""The scale rule and the scale of every module, with the evidence. Standard library only.

Modules that have the same flag and the same config share one reading of the rule, with its contradictions. The scale is
computed once for each kind of modules.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from lora_inspect import schemes
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD, plain_alpha
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.keys.groups import Likeness, ModuleGroups, ModuleKind, StoredNumbers, computed
from lora_inspect.reading.model.contribution import Contribution, Counted, Counting, Module, with_scalings
from lora_inspect.reading.model.evidence import (
    ALPHA_OPTIONS,
    LOKR_FLAG,
    RSLORA_FLAG,
    SCALE_KEY,
    Evidence,
    Hint,
    LoraFacts,
    RsloraReading,
    close,
    is_lycoris,
    names_of,
    network_args,
    read_switch,
    requested_alpha,
)
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft.config_lookup import FoundConfig, Speakers
from lora_inspect.reading.peft.peft_config import LORA_TYPE
from lora_inspect.reading.scale.scales import ScaleSources, scalings_of
from lora_inspect.schemes.lycoris import LYCORIS

HINT_SHARE = 0.5
# Sources of a rule that the file states, the strongest first.
_STRENGTH = ("flag", "metadata", "adapter_config", "option", "default")


def find_hint(facts: Iterable[LoraFacts]) -> Hint | None:
    """Return the hint if more than half of the modules with alpha and a rank above 1 have alpha = sqrt(rank)."""
    telling = [fact for fact in facts if fact.rank > 1 and fact.alpha is not None]
    modules = sum(fact.modules for fact in telling)
    matching = sum(
        fact.modules for fact in telling if fact.alpha is not None and close(fact.alpha, math.sqrt(fact.rank))
    )
    return Hint(matching / modules, matching) if matching > HINT_SHARE * modules else None


def read_rslora(
    facts: Sequence[LoraFacts],
    flags: Mapping[str, bool | None],
    metadata: Mapping[str, str],
    configs: Mapping[str, Mapping[str, Any]],
    scale_by_config: bool,
) -> tuple[RsloraReading, list[Evidence]]:
    """Return the scale rule with its evidence.

    `flags` are flag tensors by key (None for one that is no number), `configs` the LoraConfigs of the file by their
    places. `scale_by_config` says that the naming scheme keeps the rule outside the tensors, so that nothing can be
    known without a config.
    """
    evidence: list[Evidence] = []
    votes: list[tuple[str, bool]] = []
    for key, value in flags.items():
        votes.extend(("flag", said) for said in _votes(value))
        evidence.append(
            Evidence("rslora", "the flag is not a number" if value is None else f"the flag is {value}", key)
        )
    if SCALE_KEY in metadata:
        rule = metadata[SCALE_KEY]
        known = rule in (STANDARD, RANK_STABILISED)
        # A rule of a later version is neither: it contradicts whatever else is said.
        votes.extend(("metadata", said) for said in _votes(rule == RANK_STABILISED if known else None))
        evidence.append(Evidence("rslora", f"the scale is {rule}", f"metadata {SCALE_KEY}"))
    for where, config in configs.items():
        stabilised = read_switch(config.get("use_rslora"))
        votes.extend(("adapter_config", said) for said in _votes(stabilised))
        says = f"{config['use_rslora']!r}, neither yes nor no" if stabilised is None else str(stabilised)
        evidence.append(Evidence("rslora", f"use_rslora is {says}", where))
    for vote, remark in _metadata_votes(facts, metadata):
        votes.extend(("metadata", said) for said in _votes(vote))
        evidence.append(remark)

    hint = None if _states_rule(facts, metadata) else find_hint(facts)
    if len({value for _, value in votes}) > 1:
        return RsloraReading(None, "conflict", hint), evidence
    if votes:
        return RsloraReading(votes[0][1], votes[0][0]), evidence
    return RsloraReading(None if scale_by_config else False, "default", hint), evidence


def rslora_of_readings(readings: Sequence[RsloraReading]) -> RsloraReading:
    """Return the joint rule of a file's parts; its value is None if one is unknown, or if they differ."""
    unknown = [reading for reading in readings if reading.value is None]
    strongest = min(readings, key=lambda reading: _STRENGTH.index(reading.source)) if not unknown else None
    hint = next((reading.hint for reading in readings if reading.hint), None)
    if strongest is None:
        conflicts = [reading for reading in unknown if reading.source == "conflict"]
        return RsloraReading(None, (conflicts or unknown)[0].source, hint)
    same = len({reading.value for reading in readings}) == 1
    return RsloraReading(strongest.value if same else None, strongest.source, hint)


def _votes(value: bool | None) -> tuple[bool, ...]:
    """Return the votes of one voice; a value that is neither yes nor no contradicts itself."""
    return (True, False) if value is None else (value,)


def _metadata_votes(facts: Sequence[LoraFacts], metadata: Mapping[str, str]) -> list[tuple[bool | None, Evidence]]:
    """Return the votes of ss_network_args and ss_network_alpha; a vote of None contradicts itself."""
    args = network_args(metadata)
    where = "metadata ss_network_args"
    if is_lycoris(metadata):
        if read_switch(args.get("rs_lora")) is not True:
            return []
        says = "LyCORIS's rs_lora stores alpha times sqrt(rank), so alpha/rank is the whole scale"
        return [(False, Evidence("rslora", says, where))]
    asked = requested_alpha(metadata)
    telling = [(fact.alpha, fact.rank) for fact in facts if fact.rank > 1 and fact.linear and fact.alpha is not None]
    votes: list[tuple[bool | None, Evidence]] = []
    if asked == 0 and telling and all(close(alpha, math.sqrt(rank)) for alpha, rank in telling):
        says = "the requested alpha is 0 and sqrt(rank) is stored, as only RS-LoRA does"
        votes.append((True, Evidence("rslora", says, "metadata ss_network_alpha")))
    if "use_rslora" not in args:
        return votes
    asked_for = read_switch(args["use_rslora"])
    if asked_for is None:
        return [*votes, (None, Evidence("rslora", f"use_rslora is {args['use_rslora']!r}, neither yes nor no", where))]
    if not asked_for:
        return [*votes, (False, Evidence("rslora", "use_rslora is off", where))]
    if votes:
        return votes
    kinds = set() if asked is None else {_kind_of_alpha(alpha, rank, asked) for alpha, rank in telling}
    if "ss_alpha_pattern" in metadata or not args.keys().isdisjoint(ALPHA_OPTIONS):
        # A pattern gives alphas of its own, of which one may be the asked one times sqrt(rank) by chance.
        kinds &= {"raw"}
    if asked is None or not kinds:
        return [(True, Evidence("rslora", "use_rslora is on", where))]
    if kinds == {"raw"}:
        says = f"use_rslora is on and the stored alphas are the requested {asked:g}"
        return [(True, Evidence("rslora", says, where))]
    if kinds == {"folded"}:
        says = f"use_rslora is on, but the stored alphas are {asked:g} times sqrt(rank): the rule is already folded in"
        return [(False, Evidence("rslora", says, where))]
    says = f"use_rslora is on, but the stored alphas are neither {asked:g} nor {asked:g} times sqrt(rank) throughout"
    return [(None, Evidence("rslora", says, where))]


def _kind_of_alpha(alpha: float, rank: int, asked: float) -> str | None:
    if close(alpha, asked) or (asked == 0 and close(alpha, math.sqrt(rank))):
        return "raw"
    return "folded" if close(alpha, plain_alpha(asked, rank, rslora=True)) else None


def _states_rule(facts: Sequence[LoraFacts], metadata: Mapping[str, str]) -> bool:
    """Return True if no hint is needed: our metadata, LyCORIS's habit or a stored requested alpha decides."""
    asked = requested_alpha(metadata)
    telling = [fact for fact in facts if fact.rank > 1 and fact.alpha is not None]
    return (
        SCALE_KEY in metadata
        or is_lycoris(metadata)
        or (bool(asked) and all(close(fact.alpha or 0.0, asked or 0.0) for fact in telling))
        or any(any(map(str.startswith, fact.places, repeat(tuple(LYCORIS.prefixes)))) for fact in facts)
    )


class Voice(NamedTuple):
    """The statements about a single module: its own flag, and the places of its configs.

    `needs_config` says that its naming scheme keeps the rule in a config, and there is none; `needs_flag` that other
    modules of the file have flags of their own.
    """

    flag: bool | None
    configs: tuple[str, ...]
    needs_config: bool
    needs_flag: bool


class Ruled(NamedTuple):
    """A contribution of a kind's first module with a scale that may be rank-stabilised.

    The other fields are the sources of its rule and its scale.
    """

    kind: ModuleKind
    contribution: Contribution
    facts: LoraFacts
    configs: tuple[FoundConfig, ...]
    voice: Voice
    counted: Counted


class RuledGroup(NamedTuple):
    """Modules of one voice: the facts about each, and the reading and the evidence of them all."""

    facts: tuple[LoraFacts, ...]
    reading: RsloraReading
    evidence: tuple[Evidence, ...]

    @property
    def has_alpha(self) -> bool:
        """True if the rule makes a difference: without any alpha the scale is 1 under every rule."""
        return any(fact.alpha is not None for fact in self.facts)

    def settled(self, rslora: bool | None) -> "RuledGroup":
        """Return the group with the user's rule, if the file leaves the rule open."""
        if rslora is None or self.reading.settled or not self.facts:
            return self
        says = f"the scale is {RANK_STABILISED if rslora else STANDARD}"
        given = Evidence("rslora", says, f"rslora={'yes' if rslora else 'no'}")
        return self._replace(reading=RsloraReading(rslora, "option"), evidence=(*self.evidence, given))


def facts_of(kind: ModuleKind, contribution: Contribution, numbers: StoredNumbers) -> LoraFacts:
    """Return the facts for the evidence about a contribution of a kind of modules."""
    alpha = numbers.alphas.get(contribution.module.key)
    return LoraFacts(
        places=kind.places,
        rank=contribution.formula.rank(contribution.shapes) or 0,
        alpha=None if alpha is None else float(alpha),
        linear=contribution.is_linear,
        split=contribution.rows is not None,
        magnitude_axis=contribution.magnitude.axis if contribution.magnitude else None,
    )


def read_ruled(
    kinds: Sequence[ModuleKind], numbers: StoredNumbers, configs: Sequence[FoundConfig], counting: Counting
) -> list[Ruled]:
    """Return the contributions that RS-LoRA's rule can apply to, in the order of their kinds."""
    any_flag = any(kind.first.rslora_flag for kind in kinds)
    speakers = Speakers(configs)
    ruled = []
    for kind, contribution in computed(kinds):
        if contribution.formula.rslora:
            theirs = speakers.of(contribution)
            voice = _voice_of(kind.first, contribution, numbers.flags, theirs, any_flag)
            facts = facts_of(kind, contribution, numbers)
            counted = counting.counted(contribution, facts.alpha)
            ruled.append(Ruled(kind, contribution, facts, theirs, voice, counted))
    return ruled


def _voice_of(
    module: Module,
    contribution: Contribution,
    flags: Mapping[str, bool | None],
    configs: Sequence[FoundConfig],
    any_flag: bool,
) -> Voice:
    """Return the voice for a contribution.

    A config with another rank than the tensors is not theirs and has no vote.
    """
    flag = flags[module.rslora_flag.name] if module.rslora_flag else None
    theirs = tuple(found.where for found in configs if found.gives_rank(contribution))
    # PEFT itself never stores alpha, so a program that does has not left the rule in a config either.
    in_config = not module.alpha and schemes.by_name(contribution.module.scheme).absent_alpha == "config"
    return Voice(flag, theirs, in_config and not theirs, any_flag and flag is None)


def read_groups(
    ruled: Sequence[Ruled],
    claims: Claims,
    numbers: StoredNumbers,
    configs: Sequence[FoundConfig],
    metadata: Mapping[str, str],
) -> dict[Voice, RuledGroup]:
    """Return the scale rule by voice; a file without any such contribution has a group of no modules."""
    members: dict[Voice, list[Ruled]] = {}
    for one in ruled:
        members.setdefault(one.voice, []).append(one)
    if not members:
        where = tuple(found.where for found in configs if found.peft_type == LORA_TYPE)
        modules = claims.modules.values()
        unbuilt = [m.name for m in modules if not (m.alpha or all(c.algorithm.formula for c in m.contributions))]
        in_config = any(schemes.by_name(name.scheme).absent_alpha == "config" for name in unbuilt)
        members[Voice(None, where, in_config and not where, False)] = []
    network = [key for key in claims.flags if key == RSLORA_FLAG]
    groups = {}
    for voice, own in members.items():
        flags = {key: numbers.flags[key] for key in (*network, *_flags(own, claims.modules))}
        groups[voice] = _read_group(voice, [one.facts for one in own], flags, metadata, configs)
    return groups


def _flags(ruled: Sequence[Ruled], modules: Mapping[str, Module]) -> Iterable[str]:
    """Return the keys of the flags of modules, in the order of the file."""
    flagged = names_of(one.facts for one in ruled if one.kind.first.rslora_flag)
    return (flag.name for flag in (modules[name].rslora_flag for name in flagged) if flag)


def _read_group(
    voice: Voice,
    facts: Sequence[LoraFacts],
    flags: Mapping[str, bool | None],
    metadata: Mapping[str, str],
    configs: Sequence[FoundConfig],
) -> RuledGroup:
    """Return the reading of one group; `flags` are the network's and the group's own, by key."""
    theirs = {found.where: found.config for found in configs if found.where in voice.configs}
    unknown = voice.needs_config or voice.needs_flag
    reading, about = read_rslora(facts, flags, metadata, theirs, unknown)
    return RuledGroup(tuple(facts), reading, tuple(about))


def rslora_of_groups(groups: Sequence[RuledGroup]) -> RsloraReading:
    """Return the rule of the file: that of the groups in which it makes a difference, else of all."""
    deciding = [group.reading for group in groups if group.has_alpha or not group.reading.is_default]
    return rslora_of_readings(deciding or [group.reading for group in groups])


# What no evidence for RS-LoRA speaks of.
_STANDARD = RsloraReading(False, "default")


def scaled_modules(
    claims: Claims,
    kinds: Sequence[ModuleKind],
    numbers: StoredNumbers,
    configs: Sequence[FoundConfig],
    ruled: Sequence[Ruled],
    groups: Mapping[Voice, RuledGroup],
    settings: Settings,
) -> ModuleGroups:
    """Return the modules of the claims with rank, alpha and scale in every contribution that is computed.

    `kinds` are the kinds of these modules.
    """
    speakers = Speakers(configs)
    stabilised = {id(one.contribution): one for one in ruled}

    def sources(module: Module, contribution: Contribution) -> ScaleSources:
        if one := stabilised.get(id(contribution)):
            return ScaleSources(module, one.facts.alpha, one.configs, groups[one.voice].reading, one.counted)
        stored, found = numbers.alphas.get(module.name.key), speakers.of(contribution)
        return ScaleSources(module, stored, found, _STANDARD, hidden=LOKR_FLAG in claims.flags)

    modules = list(claims.modules.values())
    kind_of = [0] * len(modules)
    for number, kind in enumerate(kinds):
        scalings = scalings_of(kind.first.contributions, partial(sources, kind.first), settings)
        places = kind.places.values()
        for place, module in zip(places, with_scalings([modules[place] for place in places], scalings), strict=True):
            modules[place], kind_of[place] = module, number
    likeness = Likeness(kind_of, [next(iter(kind.places.values())) for kind in kinds])
    return ModuleGroups(zip(claims.modules, modules, strict=True), likeness)
