"""Spikes and conflicts of adapters that are applied together, and the one command that deals with them best.

The cases are looked at in the order of their severity: a spike, changes that work against each other, shared
directions, an adapter that changes nothing, and adapters that add up well.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lora_inspect.algebra.measures.spike_rule import SPIKE
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.model.settings import Settings, spell_argument
from lora_inspect.sentences import listed, shortened, some
from lora_inspect.shell import command_line, operand

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.comparison import Comparison
    from lora_inspect.algebra.measures.stack import Peak

# Adapters whose directions agree on average by less than this share are as good as independent: ten pairs of trained
# ones agree by less than 0.012. A sum of two that agree by a tenth has 5 % more norm.
INDEPENDENT = 0.1
# Below this share of the largest norm an adapter changes nothing: a millionth of the energy.
_DEAD = 1e-3
# Two changes conflict where their cosine is this far below that of independent ones. Signs alone tell little: the sign
# conflicts of the ten pairs are between 0.42 and 0.65.
_CONFLICT = -INDEPENDENT
# From this cosine down two changes are opposite: equal ones lose half of their energy or more.
_OPPOSITE = -0.5
# A conflict in blocks with less than this share of the energy of both is told, but no reason for another method.
_LEAST_CONFLICT = 0.1
# The share of the numbers that TIES keeps. Of two independent adapters its result has a cosine of 0.87 to their sum,
# and one of 0.80 at 0.2 and of 0.85 at 1: blocks without a conflict change least.
_DENSITY = 0.5
# How many blocks, and digits of a cap, are named.
_BLOCKS, _DIGITS = 3, 4
# Numbers that differ by less than this share are the same.
_ROUNDING = 1e-6


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


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The best use of a stack: the name of the case, a sentence, and a command line for a shell."""

    case: str
    sentence: str
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return the recommendation as JSON has it."""
        return {"case": self.case, "sentence": self.sentence, "command": self.command}


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


class StackedAdapter(NamedTuple):
    """An adapter as commands name it, by its path and settings; `ending` is that of an output with its names."""

    path: str
    settings: Settings
    ending: str
    needs_base: bool

    def named(self, factor: float = 1.0) -> str:
        """Return the path with its settings, and so many times the multipliers."""
        own = self.settings
        if factor != 1.0:
            multiplier = _times(1.0 if own.multiplier is None else own.multiplier, factor)
            parts = tuple((name, _times(number, factor)) for name, number in own.part_multipliers)
            own = own._replace(multiplier=multiplier, part_multipliers=parts if factor else ())
        return spell_argument(operand(self.path), own)


def _times(number: float, factor: float) -> float:
    return float(f"{number * factor:.{_DIGITS}g}")


class CombineWords(NamedTuple):
    """The words of commands for a stack.

    `options` choose modules; with them an adapter that is left out has the multiplier 0, so that they still apply.
    `base` are the options if a remaining adapter depends on a base. `takes_methods` is False if a change is no product
    of thin factors, since methods other than the sum then have no core.
    """

    adapters: tuple[StackedAdapter, ...]
    options: tuple[str, ...]
    base: tuple[str, ...]
    takes_methods: bool

    def line(self, *method: str, without: Sequence[int] = (), factor: float = 1.0) -> str:
        """Return the command that combines the adapters, but for some, into a new file or folder of the current one."""
        factors = [0.0 if at in without else factor for at in range(len(self.adapters))]
        kept = [(one, own) for one, own in zip(self.adapters, factors, strict=True) if own or self.options]
        named = [one.named(own) for one, own in kept]
        base = self.base if any(one.needs_base and own for one, own in kept) else ()
        output = _new_name("combined", kept[0][0].ending)
        return command_line(["lora-inspect", "combine", *named, *self.options, *base, *method, "-o", output])


def _new_name(stem: str, ending: str) -> str:
    names = (f"{stem}{number}{ending}" for number in ("", *(f"-{count}" for count in range(2, 10_000))))
    return next(name for name in names if not os.path.lexists(name))


class _Found(NamedTuple):
    """The facts that decide the case."""

    whole: "Comparison"
    blocks: "Mapping[str, Comparison]"
    spikes: list[Spike]
    cap: float
    conflict: Conflict | None
    words: CombineWords

    @property
    def live(self) -> list[int]:
        return live(self.whole)

    def name(self, at: int) -> str:
        return shortened(self.words.adapters[at].named())


def live(whole: "Comparison") -> list[int]:
    """Return the places of the adapters that change anything."""
    largest = max(whole.norms)
    return [at for at, norm in enumerate(whole.norms) if norm > _DEAD * largest]


def agreement(whole: "Comparison") -> float:
    """Return (E - 1) / (n - 1) of n adapters that change anything; E is the energy of the sum over their total."""
    others = len(live(whole)) - 1
    return ((whole.sum_energy or 0.0) - 1.0) / others if others > 0 else 0.0


def stack_of(whole: "Comparison", blocks: "Mapping[str, Comparison]", words: CombineWords) -> Stack:
    """Return the stack of adapters, by the comparison of all their modules and of each block."""
    found, cap = _spikes(whole)
    conflict = _conflict(whole, blocks)
    looked = _Found(whole, blocks, found, cap, conflict, words)
    recommendations = (case(looked) for case in _CASES)
    return Stack(agreement(whole), found, conflict, next(one for one in recommendations if one))


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
    following = peak.first / peak.second if peak.second > _ROUNDING * peak.first else None
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


def _all_dead(found: _Found) -> Recommendation | None:
    if found.live:
        return None
    command = command_line(["lora-inspect", "info", operand(found.words.adapters[0].path)])
    return Recommendation("nothing", "they change nothing: look at the files", command)


def _spike_of_sum(found: _Found) -> Recommendation | None:
    of_sum = [spike for spike in found.spikes if spike.adapter is None]
    if not of_sum or not found.words.takes_methods:
        return None
    cap = _rounded_up(found.cap)
    first, several = of_sum[0], len(of_sum) > 1
    what = f"{len(of_sum)} spikes, the largest" if several else "a spike"
    sentence = f"the sum has {what} in {shortened(first.module)}: cut {'them' if several else 'it'} to {cap}"
    return Recommendation("spike", sentence, found.words.line("--clip-sigma", cap))


def _rounded_up(value: float) -> str:
    """Return four digits of a number, rounded up."""
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return f"{math.ceil(value / step) * step:.{_DIGITS}g}"


def _opposite(found: _Found) -> Recommendation | None:
    if found.conflict is None or found.conflict.cosine > _OPPOSITE:
        return None
    return _without_weaker("opposite", "cancel each other", found, found.conflict)


def _without_weaker(case: str, verb: str, found: _Found, conflict: Conflict) -> Recommendation:
    """Recommend leaving out the adapter with the smaller norm, the later one if norms are equal but for rounding."""
    one, other = conflict.adapters
    norms = found.whole.norms
    are_equal = math.isclose(norms[one], norms[other], rel_tol=_ROUNDING)
    weaker = other if are_equal or norms[other] < norms[one] else one
    reason = "" if are_equal else ", which changes less"
    sentence = f"{found.name(one)} and {found.name(other)} {verb}: leave {found.name(weaker)} out{reason}"
    return Recommendation(case, sentence, found.words.line(without=[weaker]))


def _in_conflict(found: _Found) -> Recommendation | None:
    conflict = found.conflict
    if conflict is None or _share(found, conflict) < _LEAST_CONFLICT:
        return None
    verb = f"conflict in {_named(conflict.blocks)}"
    if not found.words.takes_methods:
        return _without_weaker("conflict", verb, found, conflict)
    names = " and ".join(map(found.name, conflict.adapters))
    sentence = f"{names} {verb}: let the larger numbers decide the signs"
    return Recommendation("conflict", sentence, found.words.line("--method", "ties", "--density", f"{_DENSITY:g}"))


def _share(found: _Found, conflict: Conflict) -> float:
    """Return the share of the energy of two adapters that the blocks have where they conflict."""

    def energy(own: "Comparison") -> float:
        return sum(float(own.inner[at, at]) for at in conflict.adapters)

    return sum(energy(found.blocks[name]) for name in conflict.blocks) / energy(found.whole)


def _named(blocks: Sequence[str]) -> str:
    return listed([*map(shortened, blocks)]) if len(blocks) <= _BLOCKS else some(blocks, _BLOCKS)


def _shared(found: _Found) -> Recommendation | None:
    if agreement(found.whole) < INDEPENDENT:
        return None
    if not found.words.takes_methods:
        sentence = "they push the same direction: lower all multipliers to the energy of independent adapters"
        return Recommendation("shared", sentence, found.words.line(factor=(found.whole.sum_energy or 1.0) ** -0.5))
    sentence = "they push the same direction: count directions once that several of them share"
    return Recommendation("shared", sentence, found.words.line("--calibrate", "svc"))


def _one_dead(found: _Found) -> Recommendation | None:
    dead = [at for at in range(len(found.whole.norms)) if at not in found.live]
    if not dead:
        return None
    verb, them = ("change", "them") if len(dead) > 1 else ("changes", "it")
    sentence = f"{listed(list(map(found.name, dead)))} {verb} nothing: leave {them} out"
    return Recommendation("dead", sentence, found.words.line(without=dead))


def _independent(found: _Found) -> Recommendation | None:
    if found.whole.weights.any():
        sentence = "they add up as independent adapters do: load them together, or combine them"
        return Recommendation("independent", sentence, found.words.line())
    sentence = "they change different modules: load them together, or combine them"
    return Recommendation("disjoint", sentence, found.words.line())


_CASES: tuple[Callable[[_Found], Recommendation | None], ...] = (
    *(_all_dead, _spike_of_sum, _opposite, _in_conflict, _shared, _one_dead, _independent),
)
