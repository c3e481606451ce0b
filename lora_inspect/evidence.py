"""What a file says of its scale rule and of DoRA, and where it contradicts itself. Standard library only."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lora_inspect.json_text import parse_json
from lora_inspect.scaling import RANK_STABILISED, STANDARD

RSLORA_FLAG, DORA_FLAG = "use_rslora_flag", "use_dora_flag"
SCALE_KEY = "lora_inspect.scale"

# alpha may have been rounded to bfloat16, which keeps 8 bits.
ALPHA_TOLERANCE = 2.0**-8
HINT_SHARE = 0.5


class Evidence(NamedTuple):
    """One observation: what it is `about`, what it `says`, and `where` in the file it stands."""

    about: str
    says: str
    where: str


class Problem(NamedTuple):
    """Something wrong or doubtful. An "error" stops every command that would have to guess around it."""

    code: str
    severity: str
    message: str
    keys: tuple[str, ...] = ()


class Hint(NamedTuple):
    """How many of the modules that could tell have alpha = sqrt(rank)."""

    share: float
    modules: int

    def sentence(self) -> str:
        """What the hint says, and what else it could be."""
        return (
            f"{self.share:.0%} of the alphas equal sqrt(rank), as RS-LoRA networks store them when alpha is 0; "
            "but rank 4 with alpha 2 or rank 16 with alpha 4 is also a common plain setting"
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
    return abs(first - second) <= ALPHA_TOLERANCE * max(abs(first), abs(second))


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


def is_true(value: Any) -> bool:
    """How trainers spell yes in network_args: a JSON true or one of the usual words."""
    return value is True or str(value).strip().lower() in ("true", "1", "yes", "on")


def is_lycoris(metadata: Mapping[str, str]) -> bool:
    """Whether LyCORIS wrote the file: it multiplies sqrt(rank) into the alpha that it stores."""
    return metadata.get("ss_network_module", "").startswith("lycoris")


def read_rslora(
    facts: Sequence[LoraFacts],
    flags: Mapping[str, bool],
    metadata: Mapping[str, str],
    configs: Mapping[str, Mapping[str, Any]],
    scale_by_config: bool,
) -> tuple[RsloraReading, list[Evidence]]:
    """The scale rule with its evidence.

    `flags` are flag tensors by key, `configs` the LoraConfigs that belong to the file by where they stand.
    `scale_by_config` says that the naming scheme keeps the rule outside the tensors, so that without a config
    nothing can be known.
    """
    evidence: list[Evidence] = []
    votes: list[tuple[str, bool]] = []
    for key, value in flags.items():
        votes.append(("flag", value))
        evidence.append(Evidence("rslora", f"the flag is {value}", key))
    if SCALE_KEY in metadata:
        rule = metadata[SCALE_KEY]
        known = rule in (STANDARD, RANK_STABILISED)
        # A rule of a later version is neither: it contradicts whatever else is said.
        votes.extend([("metadata", rule == RANK_STABILISED)] if known else [("metadata", True), ("metadata", False)])
        evidence.append(Evidence("rslora", f"the scale is {rule}", f"metadata {SCALE_KEY}"))
    for where, config in configs.items():
        value = config.get("use_rslora", False) is True
        votes.append(("adapter_config", value))
        evidence.append(Evidence("rslora", f"use_rslora is {value}", where))
    for vote, remark in _metadata_votes(facts, metadata):
        votes.extend([("metadata", vote)] if vote is not None else [("metadata", True), ("metadata", False)])
        evidence.append(remark)

    hint = None if _states_rule(facts, metadata) else find_hint(facts)
    if len({value for _, value in votes}) > 1:
        return RsloraReading(None, "conflict", hint), evidence
    if votes:
        return RsloraReading(votes[0][1], votes[0][0]), evidence
    if hint:
        evidence.append(Evidence("rslora", hint.sentence(), "alphas"))
    return RsloraReading(None if scale_by_config else False, "default", hint), evidence


def read_dora(
    facts: Sequence[LoraFacts],
    flag: bool | None,
    metadata: Mapping[str, str],
    configs: Mapping[str, Mapping[str, Any]],
) -> tuple[DoraReading, list[Evidence], list[Problem]]:
    """Whether the file is DoRA, with its evidence and with what contradicts or is incomplete."""
    evidence: list[Evidence] = []
    with_magnitude = [fact for fact in facts if fact.magnitude_axis]
    axes = {fact.magnitude_axis for fact in with_magnitude}
    axis = axes.pop() if len(axes) == 1 else ("mixed" if axes else None)
    if with_magnitude:
        evidence.append(Evidence("dora", f"{len(with_magnitude)} modules have a magnitude", "key scan"))
    claims: list[tuple[str, bool, str]] = []
    if flag is not None:
        claims.append(("flag", flag, DORA_FLAG))
        evidence.append(Evidence("dora", f"the flag is {flag}", DORA_FLAG))
    for where, config in configs.items():
        claim = config.get("use_dora", False) is True
        claims.append(("adapter_config", claim, where))
        evidence.append(Evidence("dora", f"use_dora is {claim}", where))

    for _, claim, where in claims:
        if with_magnitude and not claim:
            keys = tuple(fact.module for fact in with_magnitude[:5])
            message = (
                f"{where} denies DoRA, but {len(with_magnitude)} modules have a magnitude ({keys[0]}); "
                "find out which one is right and take the other out of the file"
            )
            return (
                DoraReading(None, "conflict", len(with_magnitude), axis),
                evidence,
                [Problem("dora-conflict", "error", message, keys)],
            )
        if claim and not with_magnitude:
            message = (
                f"{where} says DoRA, but no module has a magnitude: they were lost, and the rest is not the adapter; "
                "fetch the file that the trainer saved"
            )
            return DoraReading(True, claims[0][0], 0, None), evidence, [Problem("dora-missing", "error", message)]

    problems = _partial_dora(facts, with_magnitude)
    args = network_args(metadata)
    if not with_magnitude and (is_true(args.get("use_dora")) or is_true(args.get("dora_wd"))):
        message = (
            "ss_network_args asks for DoRA, but no module has a magnitude: dropout disabled it in training, "
            "or a converter lost it"
        )
        problems.append(Problem("dora-stripped", "warning", message))
        evidence.append(Evidence("dora", "DoRA was asked for", "metadata ss_network_args"))
    source = claims[0][0] if claims else ("key-scan" if with_magnitude else "default")
    return DoraReading(bool(with_magnitude), source, len(with_magnitude), axis), evidence, problems


def _partial_dora(facts: Sequence[LoraFacts], with_magnitude: Sequence[LoraFacts]) -> list[Problem]:
    missing = [fact.module for fact in facts if fact.linear and not fact.split and not fact.magnitude_axis]
    if not with_magnitude or not missing:
        return []
    message = (
        f"{len(with_magnitude)} modules have a magnitude and {len(missing)} Linear ones have none ({missing[0]}); "
        "a DoRA file has it for all of them; --allow-partial-dora accepts one that was made so"
    )
    return [Problem("dora-partial", "error", message, tuple(missing[:5]))]


def _metadata_votes(facts: Sequence[LoraFacts], metadata: Mapping[str, str]) -> list[tuple[bool | None, Evidence]]:
    """Votes of ss_network_args and ss_network_alpha; a vote of None contradicts itself."""
    args = network_args(metadata)
    where = "metadata ss_network_args"
    if is_lycoris(metadata):
        if not is_true(args.get("rs_lora")):
            return []
        says = "LyCORIS's rs_lora stores alpha times sqrt(rank), so alpha/rank is the whole scale"
        return [(False, Evidence("rslora", says, where))]
    asked = _asked_alpha(metadata)
    telling = [(fact.alpha, fact.rank) for fact in facts if fact.rank > 1 and fact.linear and fact.alpha is not None]
    votes: list[tuple[bool | None, Evidence]] = []
    if asked == 0 and telling and all(close(alpha, math.sqrt(rank)) for alpha, rank in telling):
        says = "alpha was asked as 0 and sqrt(rank) is stored, which only RS-LoRA does"
        votes.append((True, Evidence("rslora", says, "metadata ss_network_alpha")))
    if "use_rslora" not in args:
        return votes
    if not is_true(args["use_rslora"]):
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
    return "folded" if close(alpha, asked * math.sqrt(rank)) else None


def _asked_alpha(metadata: Mapping[str, str]) -> float | None:
    try:
        asked = float(metadata["ss_network_alpha"])
    except (KeyError, ValueError):
        return None
    return asked if math.isfinite(asked) else None


def _states_rule(facts: Sequence[LoraFacts], metadata: Mapping[str, str]) -> bool:
    """Whether our own metadata or an asked alpha that is the stored one leaves nothing to hint at."""
    asked = _asked_alpha(metadata)
    telling = [fact.alpha for fact in facts if fact.rank > 1 and fact.alpha is not None]
    return SCALE_KEY in metadata or (bool(asked) and all(close(alpha, asked or 0.0) for alpha in telling))
