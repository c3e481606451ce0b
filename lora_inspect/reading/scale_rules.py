"""The scale rule of every module: those that have the same flag and the same config share one reading."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_inspect import schemes
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD
from lora_inspect.reading import evidence
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.reading.evidence import Evidence, LoraFacts, RsloraReading
from lora_inspect.reading.found_configs import FoundConfig


class Voice(NamedTuple):
    """What is said of a module alone: its own flag, and where the configs stand that are theirs.

    `needs_config` says that its naming scheme keeps the rule in a config, and there is none; `needs_flag` that other
    modules of the file have flags of their own.
    """

    flag: bool | None
    configs: tuple[str, ...]
    needs_config: bool
    needs_flag: bool


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


def voice_of(
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


def read_group(
    voice: Voice,
    facts: Sequence[LoraFacts],
    flags: Mapping[str, bool | None],
    metadata: Mapping[str, str],
    configs: Sequence[FoundConfig],
) -> RuledGroup:
    """The reading of one group; `flags` are those of the network and of the group's own modules, by key."""
    theirs = {found.where: found.config for found in configs if found.where in voice.configs}
    unknown = voice.needs_config or voice.needs_flag
    reading, about = evidence.read_rslora(facts, flags, metadata, theirs, unknown)
    return RuledGroup(tuple(facts), reading, tuple(about))


def sum_up(groups: Sequence[RuledGroup]) -> RsloraReading:
    """The rule of the file: that of the groups where it makes a difference, else of all."""
    deciding = [group.reading for group in groups if group.has_alpha or not group.reading.is_default]
    return evidence.sum_up(deciding or [group.reading for group in groups])
