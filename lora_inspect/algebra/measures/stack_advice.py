"""Spikes and conflicts of adapters that are applied together, and the one command that deals with them best.

The case of the stack tries commands. The first one whose result keeps enough of each adapter is recommended; until then
adapters are left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lora_inspect.algebra.measures.spike_rule import SPIKE
from lora_inspect.algebra.measures.stack_cases import (
    INDEPENDENT,
    ROUNDING,
    Attempt,
    Conflict,
    Spike,
    StackCase,
    StackFindings,
    agreement,
    cases_of,
    weaker,
)
from lora_inspect.algebra.measures.stack_commands import CombineWords, StackResult, StackTrials
from lora_inspect.sentences import listed
from lora_inspect.shell import command_line, operand

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.comparison import Comparison
    from lora_inspect.algebra.measures.stack import Peak

# Two changes conflict where their cosine is this far below that of independent ones. Signs alone tell little: the sign
# conflicts of the ten pairs are between 0.42 and 0.65.
_CONFLICT = -INDEPENDENT
# The most energy of a result of adapters with shared directions, over that of independent adapters.
_MOST_ENERGY = 1.1
# The share of the energy that a command keeps of changes for which the rank of the factors is too low.
_KEPT_ENERGY = 0.9


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The best use of a stack: the name of the case, a sentence, and a command line for a shell.

    `carried` are the shares of the adapters in the result of the command, ⟨D, D_i⟩ / ‖D_i‖², in the order of the stack;
    None for an adapter that the command leaves out. The whole is None for a command that combines nothing.
    """

    case: str
    sentence: str
    command: str
    carried: tuple[float | None, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the recommendation as JSON has it."""
        carried = None if self.carried is None else list(self.carried)
        return {"case": self.case, "sentence": self.sentence, "command": self.command, "carried": carried}


@dataclass(frozen=True, slots=True)
class Stack:
    """The spikes of adapters, their worst conflict, None if no two of them conflict, and a recommendation.

    `agreement` is the average agreement of their directions: 0 for independent adapters, 1 for the same direction.
    """

    agreement: float
    spikes: list[Spike]
    conflict: Conflict | None
    recommendation: Recommendation

    def to_dict(self) -> dict[str, Any]:
        """Return the stack as JSON has it."""
        return {
            "agreement": self.agreement,
            "spikes": [spike.to_dict() for spike in self.spikes],
            "conflict": self.conflict.to_dict() if self.conflict else None,
            "recommendation": self.recommendation.to_dict(),
        }


def stack_of(
    whole: "Comparison", blocks: "Mapping[str, Comparison]", words: CombineWords, trials: StackTrials
) -> Stack:
    """Return the stack of adapters, by the comparison of all their modules and of each block.

    The recommended command is the first one with good shares of all adapters among the `trials`.
    """
    found_spikes, cap = _spikes(whole)
    conflict = _conflict(whole, blocks)
    recommendation = _recommendation(StackFindings(whole, blocks, found_spikes, cap, conflict, words, trials))
    return Stack(agreement(whole), found_spikes, conflict, recommendation)


def _recommendation(findings: StackFindings) -> Recommendation:
    """Return the first command with a good result; until then adapters are left out one by one."""
    if not findings.live:
        return Recommendation("nothing", "they change nothing: look at the files", _info(findings))
    recommendations = (_recommendation_of_case(findings, case) for case in cases_of(findings))
    return next(filter(None, recommendations))


def _recommendation_of_case(findings: StackFindings, case: StackCase) -> Recommendation | None:
    """Return the recommendation of a case; None if the next case is to be tried."""
    kept, weakest = case.kept, None
    while True:
        last = None
        for attempt in _with_more_directions(findings, case.attempts(kept)):
            result = findings.trials.result(attempt.command)
            if result is None:
                continue
            last = attempt, result
            if _is_good(case, findings, kept, result):
                return _recommended(findings, case, kept, attempt, result, weakest)
        if not case.omits_more:
            return None
        if last is None:
            return _refused(findings, case)
        if len(kept) == 1:
            return _recommended(findings, case, kept, *last, weakest)
        worst = min(kept, key=last[1].share)
        weakest = weakest or f"the sum carries {last[1].share(worst):.0%} of {findings.name(worst)}"
        omitted = weaker(findings.whole, worst, _opponent(findings.whole, worst, kept))
        kept = [place for place in kept if place != omitted]


def _with_more_directions(findings: StackFindings, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
    """Yield each attempt and, if its rank may leave out too much of a change, the same by a share of the energy."""
    for attempt in attempts:
        yield attempt
        if findings.words.depends_on_base(attempt.command):
            options = {**attempt.command.options, "rank": None, "energy": _KEPT_ENERGY}
            yield attempt._replace(command=attempt.command._replace(options=options))


def _is_good(case: StackCase, findings: StackFindings, kept: Sequence[int], result: StackResult) -> bool:
    if any(result.share(place) < case.least for place in kept):
        return False
    return not case.is_bounded or result.squared_norm <= _MOST_ENERGY * float(findings.inner(kept).trace())


def _opponent(whole: "Comparison", place: int, kept: Sequence[int]) -> int:
    """Return the adapter among those kept that takes most energy from another one, or adds least to it."""
    return min((other for other in kept if other != place), key=lambda other: float(whole.inner[place, other]))


def _recommended(
    findings: StackFindings,
    case: StackCase,
    kept: Sequence[int],
    attempt: Attempt,
    result: StackResult,
    weakest: str | None,
) -> Recommendation:
    """Return the recommendation of an attempt; `weakest` says why adapters are left out, if some are."""
    places = range(len(findings.whole.norms))
    names = listed([findings.name(place) for place in places if place not in {*kept, *case.omitted}])
    reason, action = case.reason, attempt.action
    if names and case.omitted:
        action = f"{action}, and {names} too"
    elif names and case.is_sum:
        reason, action = weakest or reason, f"leave {names} out"
    elif names:
        action = listed(list(filter(None, [f"leave {names} out", action])))
    line = findings.words.line(attempt.command)
    return Recommendation(case.name, f"{reason}: {action}", line, result.carried)


def _refused(findings: StackFindings, case: StackCase) -> Recommendation:
    """Return the recommendation of a stack that `combine` refuses, with its reason."""
    sentence = f"{case.reason}, but combine refuses them: {str(findings.trials.refusal).rstrip('.')}"
    return Recommendation(case.name, sentence, _info(findings))


def _info(findings: StackFindings) -> str:
    return command_line(["lora-inspect", "info", operand(findings.words.adapters[0].path)])


def _spikes(whole: "Comparison") -> tuple[list[Spike], float]:
    """Return the spikes of the sum and of each adapter, largest first, and the cap for those of the sum.

    That is the largest singular value that is no spike, so that nothing else is cut. If other layers have larger ones
    by nature, it is the limit of a spike.
    """
    from lora_inspect.algebra.measures.stack import Peak, medians, spikes

    count = len(whole.norms)
    found, cap = list[Spike](), 0.0
    for place in (count, *range(count)):
        peaks = [Peak(one.values[place][0], one.values[place][1], one.name.kind) for one in whole.peaks]
        middles, at = medians(peaks), spikes(peaks)
        own = sorted(at, key=lambda number: -peaks[number].first)
        found += [
            _spike(peaks[number], middles[number], whole.peaks[number].name.key, place if place < count else None)
            for number in own
        ]
        if place == count and own:
            others = max((peak.first for number, peak in enumerate(peaks) if number not in own), default=0.0)
            smallest = peaks[own[-1]].first
            cap = others if 0.0 < others < smallest else SPIKE * middles[own[0]]
    return found, cap


def _spike(peak: "Peak", middle: float, module: str, adapter: int | None) -> Spike:
    following = peak.first / peak.second if peak.second > ROUNDING * peak.first else None
    return Spike(adapter, module, peak.first, peak.first / middle, following)


def _conflict(whole: "Comparison", blocks: "Mapping[str, Comparison]") -> Conflict | None:
    """Return the two adapters that lose most energy to each other in the blocks where they conflict."""
    lost, most = 0.0, None
    for one, other in combinations(range(len(whole.norms)), 2):
        angles = {name: block.cosine(one, other) for name, block in blocks.items()}
        own = [name for name, angle in angles.items() if angle is not None and angle <= _CONFLICT]
        taken = -sum(float(blocks[name].inner[one, other]) for name in own)
        if taken > lost:
            lost = taken
            signs, cosine = whole.sign_conflict(one, other), whole.cosine(one, other)
            most = Conflict((one, other), signs or 0.0, cosine or 0.0, own)
    return most
