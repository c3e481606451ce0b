"""Modules of an adapter with a change of unusual size, compared with its other modules.

One direction may outweigh all others, a module may change nothing, and a scale may be far smaller than usual. A layer
is compared with those of its kind, which have the same name up to its numbers.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from lora_inspect.algebra.measures.spike_rule import ENOUGH, is_spike
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.model.evidence import RawProblem
from lora_inspect.sentences import counted, some

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.change_sizes import ChangeSize

# The change of a dead module is below this share of the median norm of its kind.
DEAD = 1e-6
# A scale is small from here on: alpha 1 at rank 16.
SMALL = 1.0 / 16.0
# From so many times more or less than the others of its kind on, a norm is unusual.
UNUSUAL = 10.0
# How many names a sentence has, and modules a problem.
_NAMES, _MOST_KEYS = 1, 5


def size_problems(sizes: "Sequence[ChangeSize]", with_zeros: Collection[str] = ()) -> Iterator[RawProblem]:
    """Yield the problems of sizes for `check --tensors`; modules `with_zeros` have a problem of their own."""
    for spike in spikes(sizes):
        yield RawProblem("spike", spike.says, (spike.key,))
    for module in dead(sizes):
        if module.key not in with_zeros:
            yield RawProblem("module-negligible", module.says, (module.key,))
    for scale in small_scales(sizes):
        yield RawProblem("scale-small", scale.says, scale.keys[:_MOST_KEYS])


class Spike(NamedTuple):
    """A module with a first direction that outweighs its second one, and the first ones of compared layers.

    `median` is that of the first singular values of `compared` modules, this one among them: all of its `kind` or, with
    None for a kind that has fewer than three, all of the adapter.
    """

    key: str
    kind: str | None
    sigma_1: float
    sigma_2: float
    median: float
    compared: int

    @property
    def says(self) -> str:
        """The numbers as a sentence without its end."""
        return (
            f"one direction of {self.key} outweighs all others: sigma_1 {self.sigma_1:.3g} against sigma_2 "
            f"{self.sigma_2:.3g}, and a median sigma_1 of {self.median:.3g} in {_compared_with(self)}"
        )


def spikes(sizes: "Sequence[ChangeSize]") -> list[Spike]:
    """Return the modules with sigma_1 above five times sigma_2, and above five times their kind's median sigma_1.

    The largest sigma_1 comes first.
    """
    found = []
    # Modules that were never trained do not count.
    for kind, own, compared in _by_kind([one for one in sizes if one.sigma_1]):
        middle = median(one.sigma_1 or 0.0 for one in compared)
        for one in own:
            sigma_1, sigma_2 = one.sigma_1 or 0.0, one.sigma_2 or 0.0
            if is_spike(sigma_1, sigma_2, middle):
                found.append(Spike(one.key, kind, sigma_1, sigma_2, middle, len(compared)))
    return sorted(found, key=lambda spike: -spike.sigma_1)


class DeadModule(NamedTuple):
    """A module that changes nothing although others do: `median` is that of the norms of `compared` others.

    They are of its `kind` or, with None for a kind that has fewer than three, of the whole adapter.
    """

    key: str
    kind: str | None
    norm: float
    median: float
    compared: int

    @property
    def says(self) -> str:
        """The numbers as a sentence without its end."""
        return (
            f"{self.key} changes nothing: norm {self.norm:.3g}, against a median of {self.median:.3g} in "
            f"{_compared_with(self)}"
        )


def dead(sizes: "Sequence[ChangeSize]") -> list[DeadModule]:
    """Return the modules with a norm of 0, or below a millionth of the median norm of their kind, zeros excluded."""
    found = []
    for kind, own, compared in _by_kind(sizes):
        alive = [one.norm for one in compared if one.norm]
        if not alive:
            continue
        middle = median(alive)
        found += [
            DeadModule(one.key, kind, one.norm, middle, len(alive) - (one.norm > 0.0))
            for one in own
            if one.norm < DEAD * middle
        ]
    return found


class SmallScale(NamedTuple):
    """Modules with one small scale. `ratio` is how many times their norms are below those of others of their kind.

    It is None where all modules of these kinds have such a scale.
    """

    keys: tuple[str, ...]
    rank: int | None
    alpha: float | None
    scale: float
    ratio: float | None

    @property
    def says(self) -> str:
        """The numbers as a sentence without its end."""
        behind = f"; {_compared(self.ratio)} the other layers of this kind" if self.ratio else ""
        where = f"{counted(len(self.keys), 'module')} ({some(self.keys, _NAMES)})"
        return f"{_scale_in_words(self.scale, self.rank, self.alpha)}, in {where}{behind}"


def small_scales(sizes: "Sequence[ChangeSize]") -> list[SmallScale]:
    """Return the scales of at most 1/16, either sign, each with its modules."""

    def scaling(one: "ChangeSize") -> tuple[float, int, float]:
        return one.scale or 0.0, one.rank or 0, one.alpha or 0.0

    usual: dict[str, list[float]] = defaultdict(list)
    for one in sizes:
        if not _is_small(one):
            usual[one.kind].append(one.norm)
    medians = {kind: median(norms) for kind, norms in usual.items()}
    found = []
    for (scale, _, _), own in groupby(sorted(filter(_is_small, sizes), key=scaling), scaling):
        group = list(own)
        ratios = [medians[one.kind] / one.norm for one in group if one.kind in medians and one.norm]
        ratio = median(ratios) if ratios else None
        found.append(SmallScale(tuple(one.key for one in group), group[0].rank, group[0].alpha, scale, ratio))
    return found


def _is_small(one: "ChangeSize") -> bool:
    return one.scale is not None and abs(one.scale) <= SMALL


class UnusualModule(NamedTuple):
    """The module with the norm furthest from the `median` of the `compared` others of its kind."""

    key: str
    kind: str
    rank: int | None
    alpha: float | None
    scale: float | None
    norm: float
    median: float
    compared: int

    @property
    def ratio(self) -> float:
        """The median over the norm."""
        return self.median / self.norm

    @property
    def says(self) -> str:
        """The numbers as a sentence without its end."""
        scale = "" if self.scale is None else f"{_scale_in_words(self.scale, self.rank, self.alpha)}; "
        return (
            f"{self.key}: {scale}norm {self.norm:.3g}, {_compared(self.ratio)} the other layers of this kind "
            f"(median {self.median:.3g} of {self.compared:,})"
        )


def unusual(sizes: "Sequence[ChangeSize]") -> UnusualModule | None:
    """Return the module furthest from the others of its kind; None if none is ten times weaker or stronger.

    Dead modules are none of them.
    """
    lifeless = {one.key for one in dead(sizes)}
    found = []
    for kind, own, _ in _by_kind([one for one in sizes if one.norm and one.key not in lifeless]):
        if kind is not None:
            norms = sorted(one.norm for one in own)
            # Of the norms in their order the smallest or the largest one is furthest from the others.
            for one in (min(own, key=lambda one: one.norm), max(own, key=lambda one: one.norm)):
                others = norms[1:] if one.norm == norms[0] else norms[:-1]
                middle, count = median(others), len(others)
                found.append(UnusualModule(one.key, kind, one.rank, one.alpha, one.scale, one.norm, middle, count))
    furthest = max(found, key=lambda one: abs(math.log(one.ratio)), default=None)
    return furthest if furthest and abs(math.log(furthest.ratio)) >= math.log(UNUSUAL) else None


def _by_kind(
    sizes: "Sequence[ChangeSize]",
) -> "Iterator[tuple[str | None, Sequence[ChangeSize], Sequence[ChangeSize]]]":
    """Yield each kind with its modules, which are compared with each other.

    The modules of kinds that have fewer than three come last, with None for the kind: all there are is compared.
    """
    kinds: dict[str, list[ChangeSize]] = defaultdict(list)
    for one in sizes:
        kinds[one.kind].append(one)
    few = [one for own in kinds.values() if len(own) < ENOUGH for one in own]
    yield from ((kind, own, own) for kind, own in kinds.items() if len(own) >= ENOUGH)
    if few:
        yield None, few, sizes


def _compared_with(found: Spike | DeadModule) -> str:
    """Return the modules behind a median."""
    return f"{counted(found.compared, 'layer')} of this kind" if found.kind else counted(found.compared, "module")


def _scale_in_words(scale: float, rank: int | None, alpha: float | None) -> str:
    """Return the scale, and the alpha and the rank that it comes from."""
    made_of = "" if rank is None or alpha is None else f": alpha {alpha:g} at rank {rank}"
    return f"scale {scale:.2g}{made_of}"


def _compared(ratio: float) -> str:
    return f"{ratio:.3g} times below" if ratio >= 1.0 else f"{1.0 / ratio:.3g} times above"
