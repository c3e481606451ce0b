"""What a file says of its scale rule, and where it contradicts itself. Standard library only."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD, plain_alpha
from lora_inspect.reading.model.evidence import (
    SCALE_KEY,
    Evidence,
    Hint,
    LoraFacts,
    RsloraReading,
    asked_alpha,
    close,
    is_lycoris,
    network_args,
    read_switch,
)
from lora_inspect.schemes.lycoris import LYCORIS

HINT_SHARE = 0.5
# Sources of a rule that the file states, the strongest first.
_STRENGTH = ("flag", "metadata", "adapter_config", "option", "default")


def find_hint(facts: Iterable[LoraFacts]) -> Hint | None:
    """The hint, where more than half of the modules with a rank above 1 and an alpha have alpha = sqrt(rank)."""
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
    """The scale rule with its evidence.

    `flags` are flag tensors by key (None for one that is no number), `configs` the LoraConfigs that belong to the file
    by where they stand. `scale_by_config` says that the naming scheme keeps the rule outside the tensors, so that
    without a config nothing can be known.
    """
    evidence: list[Evidence] = []
    votes: list[tuple[str, bool]] = []
    for key, value in flags.items():
        votes.extend(("flag", said) for said in _votes(value))
        evidence.append(Evidence("rslora", "the flag is no number" if value is None else f"the flag is {value}", key))
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


def sum_up(readings: Sequence[RsloraReading]) -> RsloraReading:
    """What the readings of a file's parts amount to. The value is None where one is unknown, or where they differ."""
    unknown = [reading for reading in readings if reading.value is None]
    strongest = min(readings, key=lambda reading: _STRENGTH.index(reading.source)) if not unknown else None
    hint = next((reading.hint for reading in readings if reading.hint), None)
    if strongest is None:
        conflicts = [reading for reading in unknown if reading.source == "conflict"]
        return RsloraReading(None, (conflicts or unknown)[0].source, hint)
    same = len({reading.value for reading in readings}) == 1
    return RsloraReading(strongest.value if same else None, strongest.source, hint)


def _votes(value: bool | None) -> tuple[bool, ...]:
    """The votes of one voice: what is neither yes nor no contradicts itself."""
    return (True, False) if value is None else (value,)


def _metadata_votes(facts: Sequence[LoraFacts], metadata: Mapping[str, str]) -> list[tuple[bool | None, Evidence]]:
    """Votes of ss_network_args and ss_network_alpha; a vote of None contradicts itself."""
    args = network_args(metadata)
    where = "metadata ss_network_args"
    if is_lycoris(metadata):
        if read_switch(args.get("rs_lora")) is not True:
            return []
        says = "LyCORIS's rs_lora stores alpha times sqrt(rank), so alpha/rank is the whole scale"
        return [(False, Evidence("rslora", says, where))]
    asked = asked_alpha(metadata)
    telling = [(fact.alpha, fact.rank) for fact in facts if fact.rank > 1 and fact.linear and fact.alpha is not None]
    votes: list[tuple[bool | None, Evidence]] = []
    if asked == 0 and telling and all(close(alpha, math.sqrt(rank)) for alpha, rank in telling):
        says = "alpha was asked as 0 and sqrt(rank) is stored, which only RS-LoRA does"
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
    if "ss_alpha_pattern" in metadata or "alpha_pattern" in args:
        # A pattern gives alphas of its own, of which one may be the asked one times sqrt(rank) by chance.
        kinds &= {"raw"}
    if asked is None or not kinds:
        return [(True, Evidence("rslora", "use_rslora is on", where))]
    if kinds == {"raw"}:
        says = f"use_rslora is on and the stored alphas are the {asked:g} that was asked"
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
    """Whether nothing is left to hint at: by our own metadata, LyCORIS's habit or an asked alpha that is stored."""
    asked = asked_alpha(metadata)
    telling = [fact for fact in facts if fact.rank > 1 and fact.alpha is not None]
    return (
        SCALE_KEY in metadata
        or is_lycoris(metadata)
        or (bool(asked) and all(close(fact.alpha or 0.0, asked or 0.0) for fact in telling))
        or any(any(map(str.startswith, fact.places, repeat(tuple(LYCORIS.prefixes)))) for fact in facts)
    )
