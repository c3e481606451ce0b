"""Numbers of adapters that are applied together: the conflicts of their signs, and outlying values.

The sign conflict of two changes is Σ min(|a|, |b|) over the numbers a and b of their cores with opposite signs, over Σ
min(|a|, |b|) of all numbers. It is 0 for one change twice, 1 for opposite ones, about 1/2 for independent ones. The
cores are those of `linear/core_space.py` for the strongest directions of each change. Another basis would give another
number unless the changes are the same or opposite.

A spike is a singular value that is far above the next one of its weight and above the values of like layers.
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
    """Return the name of a module's weight, or of that of one of its experts.

    The kind is the component and the path without numbers, but for one at its end.
    """
    name = module.module.name
    key = name.key if expert is None else f"{name.key} {expert}"
    return WeightName(key, f"{name.component} {_NUMBER.sub('', module.module.path or name.body)}")


def sign_numbers(
    changes: Sequence[Decomposed], there: Sequence[int], count: int
) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    """Return Σ min(|a|, |b|) of each two changes of n weights (n, count, count): over opposite signs, and over all.

    `there` are the places of the changes among all adapters.
    """
    opposed, smaller = numpy.zeros((2, len(changes[0].values), count, count))
    if len(changes) < 2:
        return opposed, smaller
    cores = numpy.stack(leading_cores(changes, LEADING), 1)
    one, other = numpy.triu_indices(len(changes), 1)
    sizes, signs = numpy.abs(cores), cores < 0
    least = numpy.minimum(sizes[:, one], sizes[:, other])
    places = numpy.array(there)
    smaller[:, places[one], places[other]] = least.sum((2, 3))
    opposed[:, places[one], places[other]] = (least * (signs[:, one] != signs[:, other])).sum((2, 3))
    return opposed + opposed.swapaxes(1, 2), smaller + smaller.swapaxes(1, 2)


def peaks_of(
    names: Sequence[WeightName], changes: Sequence[Decomposed], there: Sequence[int], count: int, sums: Array
) -> list[Peaks]:
    """Return the peaks of weights with changes in shared bases; `sums` (n, k, l) are the sums of the changes."""
    wide = sums if sums.shape[1] <= sums.shape[2] else sums.swapaxes(1, 2)
    # Changes without a direction share bases without a column.
    squares = numpy.linalg.eigvalsh(wide @ wide.swapaxes(1, 2))[:, ::-1] if wide.size else numpy.zeros((len(sums), 0))
    values = numpy.sqrt(numpy.maximum(squares, 0.0))
    found = numpy.zeros((len(names), count + 1, 2))
    for place, own in zip((*there, count), (*(one.values for one in changes), values), strict=True):
        found[:, place, : own.shape[1]] = own[:, :2]
    # Where changes cancel each other, the rest is their rounding.
    rounding = ROUNDING * found[:, :count, 0].sum(1)
    found[:, count] *= found[:, count] > rounding[:, None]
    return [Peaks(name, tuple((one, two) for one, two in own)) for name, own in zip(names, found.tolist(), strict=True)]


def medians(peaks: Sequence[Peak]) -> list[float]:
    """Return the median of the largest singular values of each one's kind, or of all if it has fewer than three.

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
    """Return the places of spikes: σ₁ is above 5 σ₂ of its weight, and above 5 times the median σ₁ of its kind."""
    found = enumerate(zip(peaks, medians(peaks), strict=True))
    return [at for at, (one, middle) in found if is_spike(one.first, one.second, middle)]
