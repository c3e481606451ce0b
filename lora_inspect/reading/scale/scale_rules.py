"""The scale rule of every module: those that have the same flag and the same config share one reading."""

from collections.abc import Iterable, Mapping, Sequence

from lora_inspect import schemes
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.keys.module_kinds import ModuleKind, computed
from lora_inspect.reading.keys.stored_numbers import StoredNumbers
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import RSLORA_FLAG, Evidence, LoraFacts, RsloraReading, names_of
from lora_inspect.reading.peft.config_lookup import FoundConfig, Speakers
from lora_inspect.reading.peft.peft_config import LORA_TYPE
from lora_inspect.reading.scale import rslora_evidence
from lora_inspect.reading.scale.scales import Counted, Counting


class Voice(NamedTuple):
    """What is said of a module alone: its own flag, and where the configs stand that are theirs.

    `needs_config` says that its naming scheme keeps the rule in a config, and there is none; `needs_flag` that other
    modules of the file have flags of their own.
    """

    flag: bool | None
    configs: tuple[str, ...]
    needs_config: bool
    needs_flag: bool


class Ruled(NamedTuple):
    """A contribution of a kind of modules, given as that of the first, whose scale may be rank-stabilised.

    With it stands all that its rule and its scale are read from.
    """

    kind: ModuleKind
    contribution: Contribution
    facts: LoraFacts
    configs: tuple[FoundConfig, ...]
    voice: Voice
    counted: Counted


class RuledGroup(NamedTuple):
    """Modules of one voice: what the evidence looks at in each, and what it says of them all."""

    facts: tuple[LoraFacts, ...]
    reading: RsloraReading
    evidence: tuple[Evidence, ...]

    @property
    def has_alpha(self) -> bool:
        """Whether the rule makes a difference: without any alpha the scale is 1 whatever it says."""
        return any(fact.alpha is not None for fact in self.facts)

    def settled(self, rslora: bool | None) -> "RuledGroup":
        """The group with what the user settles, where the file leaves the rule open."""
        if rslora is None or self.reading.settled or not self.facts:
            return self
        says = f"the scale is {RANK_STABILISED if rslora else STANDARD}"
        given = Evidence("rslora", says, f"rslora={'yes' if rslora else 'no'}")
        return self._replace(reading=RsloraReading(rslora, "option"), evidence=(*self.evidence, given))


def facts_of(kind: ModuleKind, contribution: Contribution, numbers: StoredNumbers) -> LoraFacts:
    """What the evidence looks at in a contribution of a kind of modules."""
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
    """The contributions that RS-LoRA's rule can be of, those of the kinds in turn."""
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
    """Who speaks of a contribution. A config whose rank is not that of the tensors is not theirs and has no vote."""
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
    """The scale rule by voice; a file without a single contribution that has one has a group of no modules."""
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
    """The keys of the flags of modules, in the order of the file."""
    flagged = names_of(one.facts for one in ruled if one.kind.first.rslora_flag)
    return (flag.name for flag in (modules[name].rslora_flag for name in flagged) if flag)


def _read_group(
    voice: Voice,
    facts: Sequence[LoraFacts],
    flags: Mapping[str, bool | None],
    metadata: Mapping[str, str],
    configs: Sequence[FoundConfig],
) -> RuledGroup:
    """The reading of one group; `flags` are those of the network and of the group's own modules, by key."""
    theirs = {found.where: found.config for found in configs if found.where in voice.configs}
    unknown = voice.needs_config or voice.needs_flag
    reading, about = rslora_evidence.read_rslora(facts, flags, metadata, theirs, unknown)
    return RuledGroup(tuple(facts), reading, tuple(about))


def sum_up(groups: Sequence[RuledGroup]) -> RsloraReading:
    """The rule of the file: that of the groups where it makes a difference, else of all."""
    deciding = [group.reading for group in groups if group.has_alpha or not group.reading.is_default]
    return rslora_evidence.sum_up(deciding or [group.reading for group in groups])
