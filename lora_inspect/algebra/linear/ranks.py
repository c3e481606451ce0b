"""The rank of each module of an output, by one rule for all of them, and the error that it makes.

The error of a trim is the tail of the singular values: ‖D - D_k‖² = Σ_{j>k} σ_j² (Eckart & Young 1936). Of a file it is
the root of the sum over its modules, over the norm of all changes; the energy that is kept is 1 - error².
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy

from lora_inspect.algebra.linear.factors import Array
from lora_inspect.fast_namedtuple import NamedTuple


class Spectrum(NamedTuple):
    """The singular values of one module's change, falling, and the bytes of one rank in the file.

    `rounding` is how many of the values are more than the rounding of the factors. `rest` is the norm of all that is
    behind the values, where not all of them are known.
    """

    values: Array
    rounding: int
    rank_bytes: int
    rest: float = 0.0

    @property
    def tails(self) -> Array:
        """The norm of the rest behind each rank, from rank 0 on; the smallest values are summed first."""
        squares = numpy.append(numpy.square(self.values), self.rest**2)[::-1].cumsum()[::-1]
        tails: Array = numpy.sqrt(squares)
        return tails

    @property
    def norm(self) -> float:
        """The norm of the change."""
        return float(self.tails[0])


@dataclass(frozen=True, slots=True)
class RankRule:
    """At most one of the first four, and a cap: without any, a module keeps all that is more than rounding.

    `rank` is one for all modules, `energy` the share of the squared norm that each keeps, `max_error` the largest
    relative error of each. `size` is the bytes of the whole file; its ranks go to the modules where they add most.
    `of_inputs` gives each module the largest rank that it has in one input.
    """

    rank: int | None = None
    energy: float | None = None
    max_error: float | None = None
    size: int | None = None
    max_rank: int | None = None
    of_inputs: bool = False

    @property
    def is_exact(self) -> bool:
        """True if only rounding is left out."""
        return self == RankRule()

    def most(self, possible: int, of_inputs: int) -> int:
        """Return the largest rank of a module from the `possible` rank of its change and the rank of its inputs."""
        caps = (self.rank, self.max_rank, of_inputs if self.of_inputs else None)
        return min([possible, *(cap for cap in caps if cap is not None)])

    def to_record(self) -> dict[str, object]:
        """Return the rule as its options say it."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in named.items() if value is not None and value is not False}

    @property
    def largest_error(self) -> float | None:
        """The relative error that each module may have; None where that is no part of the rule."""
        return self.max_error if self.energy is None else math.sqrt(1.0 - self.energy)

    def rank_of(self, spectrum: Spectrum, of_inputs: int = 0) -> int:
        """Return the rank of one module, which no other one decides; the largest in an input is that `of_inputs`."""
        own = spectrum.rounding
        if self.largest_error is not None:
            # The rest falls with the rank, so the first one that is small enough is the least.
            small = spectrum.tails <= self.largest_error * spectrum.norm * (1.0 + 1e-12)
            own = min(own, int(numpy.argmax(small)))
        return min(own, max(1, self.most(own, of_inputs)))


def choose_ranks(
    spectra: Sequence[Spectrum],
    rule: RankRule,
    file_size: Callable[[Sequence[int]], int],
    of_inputs: Sequence[int] | None = None,
) -> list[int]:
    """Return the rank of each module; 0 leaves it out, as one without a change, or where a size has no room for it.

    `file_size(ranks)` is the size of the file. Raises ValueError where even ranks of 0 take more than the size.
    """
    ranks = [rule.rank_of(one, own) for one, own in zip(spectra, of_inputs or [0] * len(spectra), strict=True)]
    return ranks if rule.size is None else _fitted(spectra, ranks, rule.size, file_size)


def _fitted(
    spectra: Sequence[Spectrum], most: Sequence[int], size: int, file_size: Callable[[Sequence[int]], int]
) -> list[int]:
    """Return ranks, at most `most`, of a file of at most a `size` that lower the error most for their bytes.

    Each rank of a module lowers the error by less than the one before, so the best ones one by one are the best choice,
    but for the last of them.
    """
    gains = [
        (-(float(value) ** 2) / spectrum.rank_bytes, number)
        for number, spectrum in enumerate(spectra)
        for value in spectrum.values[: most[number]]
    ]
    order = [number for _, number in sorted(gains)]
    if file_size([0] * len(spectra)) > size:
        raise ValueError(f"nothing fits in {size:,} bytes")
    # The size grows with every rank: the most that fit are found by halving.
    fits, beyond = 0, len(order) + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if file_size(_counted(order[:middle], spectra)) <= size else (fits, middle)
    return _counted(order[:fits], spectra)


def _counted(order: Sequence[int], spectra: Sequence[Spectrum]) -> list[int]:
    found = numpy.bincount(numpy.array(order, dtype=numpy.int64), minlength=len(spectra))
    return [int(count) for count in found]


class TrimError(NamedTuple):
    """The relative error of a file with trimmed modules, and of its worst module, by its place."""

    error: float
    worst: tuple[int, float] | None

    @property
    def energy(self) -> float:
        """The share of the squared norm of all changes that is kept."""
        return 1.0 - self.error**2


def trim_error(spectra: Sequence[Spectrum], ranks: Sequence[int]) -> TrimError:
    """Return the errors that trims to the ranks make."""
    lost = [float(spectrum.tails[rank]) for spectrum, rank in zip(spectra, ranks, strict=True)]
    norms = [spectrum.norm for spectrum in spectra]
    norm = math.hypot(*norms)
    shares = [(tail / own, place) for place, (tail, own) in enumerate(zip(lost, norms, strict=True)) if own]
    worst = max(shares, key=lambda found: (found[0], -found[1]), default=None)
    return TrimError(math.hypot(*lost) / norm if norm else 0.0, worst and (worst[1], worst[0]))
