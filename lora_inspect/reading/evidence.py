"""What a file says of its scale rule, and where it contradicts itself. Standard library only."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lora_inspect.files.json_text import parse_json
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD, plain_alpha
from lora_inspect.schemes.lycoris import LYCORIS

RSLORA_FLAG, DORA_FLAG = "use_rslora_flag", "use_dora_flag"
SCALE_KEY = "lora_inspect.scale"

# alpha may have been rounded to bfloat16, which keeps 8 bits.
ALPHA_TOLERANCE = 2.0**-8
HINT_SHARE = 0.5

# How programs spell yes and no where they keep options as text.
_SWITCH = {"true": True, "1": True, "yes": True, "on": True, "y": True, "t": True}
_SWITCH |= dict.fromkeys(("false", "0", "no", "off", "n", "f", "none", "null", ""), False)
# Sources of a rule that the file states, the strongest first.
_STRENGTH = ("flag", "metadata", "adapter_config", "option", "default")
# No trainer stores an alpha beyond what float32 holds.
_LARGEST_ALPHA = 2.0**127


class Evidence(NamedTuple):
    """One observation: what it is `about`, what it `says`, and `where` in the file it stands."""

    about: str
    says: str
    where: str


class Hint(NamedTuple):
    """How many of the modules that could tell have alpha = sqrt(rank)."""

    share: float
    modules: int

    def sentence(self) -> str:
        """What the hint says, and what else it could be."""
        return (
            f"{self.share:.0%} of the alphas equal sqrt(rank), as in RS-LoRA networks of alpha 0, "
            "but also in plain rank 4 with alpha 2 or rank 16 with alpha 4"
        )


class RsloraReading(NamedTuple):
    """Whether alpha/sqrt(rank) applies (None = unknown), by which kind of evidence, and the hint."""

    value: bool | None
    source: str
    hint: Hint | None = None

    @property
    def settled(self) -> bool:
        """Whether the file itself states the rule, and states one only."""
        return self.source not in ("default", "conflict")

    @property
    def is_default(self) -> bool:
        """Whether nothing states the rule and nothing has to: alpha/rank, as every reader takes it."""
        return self.source == "default" and self.value is False


class DoraReading(NamedTuple):
    """Whether magnitudes apply (None = unknown), by which kind of evidence, on how many modules and which axis."""

    value: bool | None
    source: str
    modules: int
    axis: str | None


class LoraFacts(NamedTuple):
    """What the evidence looks at in one LoRA module. `alpha` is the stored one; None where there is none."""

    module: str
    rank: int
    alpha: float | None
    linear: bool
    split: bool
    magnitude_axis: str | None = None


def close(first: float, second: float) -> bool:
    """Whether two alphas are the same number up to a rounding to bfloat16."""
    largest = max(abs(first), abs(second))
    return math.isfinite(largest) and abs(first - second) <= ALPHA_TOLERANCE * largest


def find_hint(facts: Iterable[LoraFacts]) -> Hint | None:
    """The hint, where more than half of the modules with a rank above 1 and an alpha have alpha = sqrt(rank)."""
    telling = [fact for fact in facts if fact.rank > 1 and fact.alpha is not None]
    matching = sum(close(fact.alpha, math.sqrt(fact.rank)) for fact in telling if fact.alpha is not None)
    if not telling or matching <= HINT_SHARE * len(telling):
        return None
    return Hint(matching / len(telling), matching)


def network_args(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The parsed `ss_network_args`, empty where they are missing or no JSON object."""
    try:
        found = parse_json(metadata.get("ss_network_args", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_switch(value: Any) -> bool | None:
    """A yes or no as configs and trainers spell it, nothing at all being no; None where it is neither."""
    return _SWITCH.get("" if value is None else str(value).strip().lower())


def read_flag(number: float | int | bool | None) -> bool | None:
    """What the number in a flag tensor says; None where it is NaN, or of an element type that has no plain reading."""
    return None if number is None or math.isnan(number) else bool(number)


def is_lycoris(metadata: Mapping[str, str]) -> bool:
    """Whether LyCORIS wrote the file: it multiplies sqrt(rank) into the alpha that it stores."""
    return metadata.get("ss_network_module", "").startswith("lycoris")


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


def asked_alpha(metadata: Mapping[str, str]) -> float | None:
    """The alpha that `ss_network_alpha` says was asked for, None where it is no number that could have been stored."""
    try:
        asked = float(metadata["ss_network_alpha"])
    except (KeyError, ValueError):
        return None
    return asked if abs(asked) < _LARGEST_ALPHA else None


def _states_rule(facts: Sequence[LoraFacts], metadata: Mapping[str, str]) -> bool:
    """Whether nothing is left to hint at: by our own metadata, LyCORIS's habit or an asked alpha that is stored."""
    asked = asked_alpha(metadata)
    telling = [fact for fact in facts if fact.rank > 1 and fact.alpha is not None]
    return (
        SCALE_KEY in metadata
        or is_lycoris(metadata)
        or any(fact.module.startswith(tuple(LYCORIS.prefixes)) for fact in facts)
        or (bool(asked) and all(close(fact.alpha or 0.0, asked or 0.0) for fact in telling))
    )
