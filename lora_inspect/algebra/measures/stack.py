"""Numbers of adapters that are applied together: where their signs disagree, and values that stand out.

The sign conflict of two changes is Σ min(|a|, |b|) over the numbers of their cores where a and b have opposite signs,
over Σ min(|a|, |b|) of all numbers: 0 of one change twice, 1 of opposite ones, about 1/2 of independent ones. The cores
are those of `linear/core_space.py` for the strongest directions of each change. Another basis would give another number
unless the changes are the same or opposite.

A spike is a singular value that is far above the next one of its weight and above those of like layers.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import OutputModule
from lora_inspect.algebra.linear.core import ROUNDING, Decomposed
from lora_inspect.algebra.linear.core_space import leading_cores
from lora_inspect.algebra.linear.factors import Array
from lora_inspect.algebra.measures.spike_rule import ENOUGH, is_spike
from lora_inspect.fast_namedtuple import NamedTuple

# So many directions of each change count in a sign conflict. A trained LoRA of rank 16 has 89 % of its energy in these,
# and the cores of all directions would take as long as the rest of a comparison.
LEADING = 8
# A number of a path with a separator behind it, as that of a block.
_NUMBER = re.compile(r"(?<=[._])[0-9]+[._]")


class WeightName(NamedTuple):
    """The name of a weight in the output, with the number of the expert where there are several, and its kind."""

    key: str
    kind: str


class Peaks(NamedTuple):
    """The two largest singular values of each adapter's change of one weight and, last, of their sum."""

    name: WeightName
    values: tuple[tuple[float, float], ...]


class Peak(NamedTuple):
    """The two largest singular values of one change of a weight, and the kind of its layer."""

    first: float
    second: float
    kind: str


def weight_name(module: OutputModule, expert: int | None = None) -> WeightName:
    """The name of a module's weight, or of that of one of its experts.

    The kind is the component and the path without numbers, but for one at its end.
    """
    name = module.module.name
    key = name.key if expert is None else f"{name.key} {expert}"
    return WeightName(key, f"{name.component} {_NUMBER.sub('', module.module.path or name.body)}")


def sign_numbers(
    changes: Sequence[Decomposed], there: Sequence[int], count: int
) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    """Σ min(|a|, |b|) of each two changes of a weight (count, count): over opposite signs, and over all numbers.

    `there` are the places of the changes among all adapters.
    """
    opposed, smaller = numpy.zeros((count, count)), numpy.zeros((count, count))
    if len(changes) < 2:
        return opposed, smaller
    cores = numpy.stack(leading_cores(changes, LEADING))
    one, other = numpy.triu_indices(len(cores), 1)
    sizes, signs = numpy.abs(cores), cores < 0
    least = numpy.minimum(sizes[one], sizes[other])
    pairs = numpy.array(there)[one], numpy.array(there)[other]
    smaller[pairs] = least.sum((1, 2))
    opposed[pairs] = (least * (signs[one] != signs[other])).sum((1, 2))
    return opposed + opposed.T, smaller + smaller.T


def peaks_of(name: WeightName, changes: Sequence[Decomposed], there: Sequence[int], count: int, whole: Array) -> Peaks:
    """The peaks of a weight of which the changes are in bases that they share, and `whole` is their sum."""
    found = [(0.0, 0.0)] * count
    for place, change in zip(there, changes, strict=True):
        found[place] = _two_largest(change.values)
    wide = whole if len(whole) <= whole.shape[1] else whole.T
    squares = numpy.linalg.eigvalsh(wide @ wide.T)[::-1] if wide.size else numpy.zeros(0)
    values = numpy.sqrt(numpy.maximum(squares, 0.0))
    # Where changes cancel each other, the rest is their rounding.
    rounding = ROUNDING * sum(first for first, _ in found)
    return Peaks(name, (*found, _two_largest(numpy.where(values > rounding, values, 0.0))))


def _two_largest(values: Array) -> tuple[float, float]:
    first, second = (*map(float, values[:2]), 0.0, 0.0)[:2]
    return first, second


def medians(peaks: Sequence[Peak]) -> list[float]:
    """The median of the largest singular values of each one's kind, or of all where the kind has fewer than three.

    Layers without a change do not count.
    """
    kinds: dict[str, list[float]] = defaultdict(list)
    for one in peaks:
        if one.first:
            kinds[one.kind].append(one.first)
    every = [value for values in kinds.values() for value in values]
    known = {kind: median(values if len(values) >= ENOUGH else every) for kind, values in kinds.items()}
    return [known.get(one.kind, 0.0) for one in peaks]


def spikes(peaks: Sequence[Peak]) -> list[int]:
    """The places of spikes: σ₁ is above 5 σ₂ of its weight, and above 5 times the median σ₁ of its kind."""
    found = enumerate(zip(peaks, medians(peaks), strict=True))
    return [at for at, (one, middle) in found if is_spike(one.first, one.second, middle)]
