"""The cases of a stack, in the order of their severity, and the commands that each of them tries, the best first.

These are a spike, changes that work against each other, shared directions, an adapter that changes nothing, and
adapters that add up well.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

from lora_inspect.algebra.measures.stack_commands import CombineWords, StackCommand, StackTrials
from lora_inspect.algebra.options import ENERGY, SVC
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.sentences import listed, shortened, some

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.comparison import Comparison, Square

# Adapters whose directions agree on average by less than this share are as good as independent: ten pairs of trained
# ones agree by less than 0.012. A sum of two that agree by a tenth has 5 % more norm.
INDEPENDENT = 0.1
# Below this share of the largest norm an adapter changes nothing: a millionth of the energy.
_DEAD = 1e-3
# From this cosine down two changes are opposite: equal ones lose half of their energy or more.
_OPPOSITE = -0.5
# A conflict in blocks with less than this share of the energy of both is told, but no reason for another method.
_LEAST_CONFLICT = 0.1
# The share of the numbers that TIES keeps. Of two independent adapters its result has a cosine of 0.87 to their sum,
# and one of 0.80 at 0.2 and of 0.85 at 1: blocks without a conflict change least.
_DENSITY = 0.5
# The name of the method.
_TIES = "ties"
# The least share of each adapter in the result of a recommended command, and that of adapters with shared directions.
_LEAST, _LEAST_OF_SHARED = 0.5, 0.75
# The words for the effect of `--calibrate energy`.
_ENERGY_OF_INDEPENDENT = "the energy of independent adapters"
# How many blocks, and digits of a cap, are named.
_BLOCKS, _DIGITS = 3, 4
# Numbers that differ by less than this share are the same.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Spike:
    """An outlying singular value of the change of one adapter, given by its place, or of the sum, None.

    It is so many times the median of like layers, and the next value of its weight; None where there is no next one.
    """

    adapter: int | None
    module: str
    value: float
    times_median: float
    times_next: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the spike as JSON has it."""
        return {
            "adapter": self.adapter,
            "module": self.module,
            "value": self.value,
            "times_median": self.times_median,
            "times_next": self.times_next,
        }


@dataclass(frozen=True, slots=True)
class Conflict:
    """The two adapters, by their places, that take most from each other, and the blocks where they do."""

    adapters: tuple[int, int]
    sign_conflict: float
    cosine: float
    blocks: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the conflict as JSON has it."""
        return {
            "adapters": list(self.adapters),
            "sign_conflict": self.sign_conflict,
            "cosine": self.cosine,
            "blocks": self.blocks,
        }


class StackFindings(NamedTuple):
    """The facts that decide the case."""

    whole: "Comparison"
    blocks: "Mapping[str, Comparison]"
    spikes: list[Spike]
    cap: float
    conflict: Conflict | None
    words: CombineWords
    trials: StackTrials

    @property
    def live(self) -> list[int]:
        """The places of the adapters that change anything."""
        return live(self.whole)

    def name(self, place: int) -> str:
        """Return an adapter as it was named, for a sentence."""
        return shortened(self.words.adapters[place].named())

    def command(self, kept: Sequence[int], **options: Any) -> StackCommand:
        """Return the command that combines the adapters at the places `kept`, with options."""
        factors = tuple(float(place in kept) for place in range(len(self.whole.norms)))
        return StackCommand(factors, options)

    def inner(self, kept: Sequence[int]) -> "Square":
        """Return the inner products (k, k) of the changes at k places."""
        return self.whole.inner[numpy.ix_(kept, kept)]


class Attempt(NamedTuple):
    """A command that a case may recommend, and the words for its effect; none for a sum."""

    action: str
    command: StackCommand


class StackCase(NamedTuple):
    """The case of a stack: its name, the reason that starts its sentence, and the commands that it tries.

    `kept` are the places of the adapters that its first commands combine; their words name the places `omitted`.
    `attempts` returns the commands for the adapters at some places, the best first. Each of these adapters keeps at
    least the share `least`; `is_bounded` also limits the energy of the result. Without such a result an adapter is left
    out or, unless the case `omits_more`, the next case is tried. `is_sum` says that the case recommends the sum, so
    that the reason changes once an adapter is left out.
    """

    name: str
    reason: str
    kept: list[int]
    attempts: "Callable[[list[int]], Iterable[Attempt]]"
    omitted: tuple[int, ...] = ()
    least: float = _LEAST
    is_bounded: bool = False
    is_sum: bool = False
    omits_more: bool = True


def live(whole: "Comparison") -> list[int]:
    """Return the places of the adapters that change anything."""
    largest = max(whole.norms)
    return [at for at, norm in enumerate(whole.norms) if norm > _DEAD * largest]


def agreement(whole: "Comparison") -> float:
    """Return (E - 1) / (n - 1) of n adapters that change anything; E is the energy of the sum over their total."""
    return _agreement(whole.sum_energy or 0.0, len(live(whole)))


def _agreement(energy: float, count: int) -> float:
    return (energy - 1.0) / (count - 1) if count > 1 else 0.0


def _spike_of_sum(findings: StackFindings) -> StackCase | None:
    of_sum = [spike for spike in findings.spikes if spike.adapter is None]
    if not of_sum or not findings.words.takes_methods:
        return None
    count, them = (f"{len(of_sum)} spikes, the largest", "them") if len(of_sum) > 1 else ("a spike", "it")
    smallest = of_sum[-1].value

    def attempts(kept: list[int]) -> Iterator[Attempt]:
        cap = _rounded_up(findings.cap)
        command = findings.command(kept, clip_sigma=float(cap))
        yield Attempt(f"cut {them} to {cap}", command)
        higher = _higher_cap(findings, kept, command)
        if higher and higher.cap < smallest:
            cap = _rounded_up(higher.cap)
            action = f"cut {them} to {cap}, which keeps half of {findings.name(higher.adapter)}"
            yield Attempt(action, findings.command(kept, clip_sigma=float(cap)))

    return StackCase(
        name="spike",
        reason=f"the sum has {count} in {shortened(of_sum[0].module)}",
        kept=findings.live,
        attempts=attempts,
        omits_more=False,
    )


class _Cap(NamedTuple):
    """A cap, and the place of the adapter of which it keeps the least share."""

    cap: float
    adapter: int


def _higher_cap(findings: StackFindings, kept: Sequence[int], command: StackCommand) -> _Cap | None:
    """Return a cap above that of a command at which each adapter has its least share; None without one.

    A share is a concave function of the cap, as long as the cut directions add to their adapters: it is above the
    straight line from its number at the cap of the command to that of the whole sum.
    """
    at_cap, of_sum = findings.trials.result(command), findings.trials.result(findings.command(kept))
    if at_cap is None or of_sum is None or any(of_sum.share(place) <= _LEAST for place in kept):
        return None
    lower = command.options["clip_sigma"]
    upper = max(peaks.values[-1][0] for peaks in findings.whole.peaks)
    caps = [_Cap(0.0, kept[0])]
    for place in kept:
        share, most = at_cap.share(place), of_sum.share(place)
        if share < _LEAST:
            caps.append(_Cap(lower + (_LEAST - share) / (most - share) * (upper - lower), place))
    return max(caps)


def _rounded_up(value: float) -> str:
    """Return four digits of a number, rounded up."""
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return f"{math.ceil(value / step) * step:.{_DIGITS}g}"


def _opposite(findings: StackFindings) -> StackCase | None:
    if findings.conflict is None or findings.conflict.cosine > _OPPOSITE:
        return None
    return _without_weaker("opposite", "cancel each other", findings, findings.conflict)


def _without_weaker(case: str, verb: str, findings: StackFindings, conflict: Conflict) -> StackCase:
    """Return the case that leaves out the adapter with the smaller norm of two."""
    one, other = conflict.adapters
    omitted = weaker(findings.whole, one, other)
    reason = "" if _have_equal_norms(findings.whole, one, other) else ", which changes less"
    return StackCase(
        name=case,
        reason=f"{findings.name(one)} and {findings.name(other)} {verb}",
        kept=[place for place in findings.live if place != omitted],
        attempts=lambda kept: [Attempt(f"leave {findings.name(omitted)} out{reason}", findings.command(kept))],
        omitted=(omitted,),
    )


def weaker(whole: "Comparison", one: int, other: int) -> int:
    """Return the adapter with the smaller norm; the later one if norms are equal but for rounding."""
    if _have_equal_norms(whole, one, other):
        return max(one, other)
    return other if whole.norms[other] < whole.norms[one] else one


def _have_equal_norms(whole: "Comparison", one: int, other: int) -> bool:
    return math.isclose(whole.norms[one], whole.norms[other], rel_tol=ROUNDING)


def _in_conflict(findings: StackFindings) -> StackCase | None:
    conflict, live = findings.conflict, findings.live
    if conflict is None or _share(findings, conflict) < _LEAST_CONFLICT:
        return None
    verb = f"conflict in {_named(conflict.blocks)}"
    if not findings.words.takes_methods:
        return _without_weaker("conflict", verb, findings, conflict)

    def attempts(kept: list[int]) -> Iterator[Attempt]:
        if kept != live:
            yield Attempt("", findings.command(kept))
            return
        action, options = "let the larger numbers decide the signs", {"method": _TIES, "density": _DENSITY}
        yield Attempt(action, findings.command(kept, **options))
        action += f", and give the result {_ENERGY_OF_INDEPENDENT}"
        yield Attempt(action, findings.command(kept, **options, calibrate=ENERGY))

    names = " and ".join(map(findings.name, conflict.adapters))
    return StackCase("conflict", f"{names} {verb}", live, attempts)


def _share(findings: StackFindings, conflict: Conflict) -> float:
    """Return the share of the energy of two adapters that the blocks have where they conflict."""

    def energy(own: "Comparison") -> float:
        return sum(float(own.inner[at, at]) for at in conflict.adapters)

    return sum(energy(findings.blocks[name]) for name in conflict.blocks) / energy(findings.whole)


def _named(blocks: Sequence[str]) -> str:
    return listed([*map(shortened, blocks)]) if len(blocks) <= _BLOCKS else some(blocks, _BLOCKS)


def _shared(findings: StackFindings) -> StackCase | None:
    if agreement(findings.whole) < INDEPENDENT:
        return None

    def attempts(kept: list[int]) -> Iterator[Attempt]:
        inner = findings.inner(kept)
        energy = float(inner.sum() / inner.trace())
        if _agreement(energy, len(kept)) < INDEPENDENT:
            yield Attempt("", findings.command(kept))
        if findings.words.takes_methods:
            yield Attempt("divide each direction by how often they count it", findings.command(kept, calibrate=SVC))
            yield Attempt(f"give the sum {_ENERGY_OF_INDEPENDENT}", findings.command(kept, calibrate=ENERGY))
        else:
            action = f"lower all multipliers to {_ENERGY_OF_INDEPENDENT}"
            yield Attempt(action, _times(findings.command(kept), energy**-0.5))
        shares = inner.sum(1) / inner.diagonal()
        factors = numpy.ones(len(findings.whole.norms))
        factors[kept] = 1.0 / numpy.maximum(shares, 1.0)
        action = "divide each multiplier by the share of its adapter in the sum"
        yield Attempt(action, _times(findings.command(kept), factors))

    return StackCase(
        name="shared",
        reason="they push the same direction",
        kept=findings.live,
        attempts=attempts,
        least=_LEAST_OF_SHARED,
        is_bounded=True,
    )


def _times(command: StackCommand, factors: "float | Square") -> StackCommand:
    return command._replace(factors=tuple((numpy.array(command.factors) * factors).tolist()))


def _one_dead(findings: StackFindings) -> StackCase | None:
    dead = [at for at in range(len(findings.whole.norms)) if at not in findings.live]
    if not dead:
        return None
    verb, them = ("change", "them") if len(dead) > 1 else ("changes", "it")
    return StackCase(
        name="dead",
        reason=f"{listed(list(map(findings.name, dead)))} {verb} nothing",
        kept=findings.live,
        attempts=lambda kept: [Attempt(f"leave {them} out", findings.command(kept))],
        omitted=tuple(dead),
    )


def _independent(findings: StackFindings) -> StackCase | None:
    is_disjoint = not findings.whole.weights.any()
    return StackCase(
        name="disjoint" if is_disjoint else "independent",
        reason="they change different modules" if is_disjoint else "they add up as independent adapters do",
        kept=findings.live,
        attempts=lambda kept: [Attempt("load them together, or combine them", findings.command(kept))],
        is_sum=True,
    )


_CASES: tuple[Callable[[StackFindings], StackCase | None], ...] = (
    *(_spike_of_sum, _opposite, _in_conflict, _shared, _one_dead, _independent),
)


def cases_of(findings: StackFindings) -> Iterator[StackCase]:
    """Yield the cases of a stack in which an adapter changes anything; the last one fits any stack."""
    return (case for find in _CASES if (case := find(findings)))
