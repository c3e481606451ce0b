"""The singular values of many layers in a few numbers: a band over the layers, and ranks that keep energy."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median_low
from typing import TYPE_CHECKING, Any

from lora_inspect.algebra.measures.sizes_by_part import parts_to_dict
from lora_inspect.sentences import Result

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.change_sizes import (
        ChangeSize,
        ChangeSpectrum,
        MeasuredChanges,
        UnmeasuredModule,
    )

# The shares of a layer's squared norm that the ranks of a band keep.
MOST, NEARLY_ALL = 0.9, 0.99
# The quantiles of a band.
QUANTILES = (0.1, 0.5, 0.9)
# So many values of a layer stand in a record; `rest` is the norm of those behind them.
_LISTED = 256
_UNKNOWN = 1 << 62
# What rounding may add to a tail.
_SLACK = 2e-12


@dataclass(frozen=True, slots=True)
class LayerSpectrum:
    """The spectrum of one module's change of a weight.

    `values` are the singular values, falling, without mere rounding. `rest` is the norm of the others: only the first
    64 are computed for a change that is no thin product, unless it is small. `ranks` are the least that keep 90 and 99
    % of its squared norm, None if that takes more values than are known.
    """

    key: str
    component: str
    block: str
    kind: str
    norm: float
    values: tuple[float, ...]
    rest: float
    ranks: tuple[int | None, int | None]

    @classmethod
    def of(cls, size: "ChangeSize", spectrum: "ChangeSpectrum") -> "LayerSpectrum":
        """Return the spectrum of a measured change."""
        values: tuple[float, ...] = tuple(spectrum.values.tolist())
        ranks = rank_at(values, spectrum.rest, MOST), rank_at(values, spectrum.rest, NEARLY_ALL)
        return cls(size.key, size.component, size.block, size.kind, size.norm, values, spectrum.rest, ranks)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON has them."""
        behind = math.hypot(self.rest, *self.values[_LISTED:])
        return {
            "module": self.key,
            "component": self.component,
            "block": self.block,
            "kind": self.kind,
            "norm": self.norm,
            "values": list(self.values[:_LISTED]),
            "rest": behind,
            "rank_90": self.ranks[0],
            "rank_99": self.ranks[1],
        }


def rank_at(values: Sequence[float], rest: float, energy: float) -> int | None:
    """Return the least rank that keeps a share of the squared norm; None if that takes more values than are known."""
    tails = list(accumulate([rest**2, *(value**2 for value in reversed(values))]))[::-1]
    most = (1.0 - energy) * tails[0] * (1.0 + _SLACK)
    return next((rank for rank, tail in enumerate(tails) if tail <= most), None)


@dataclass(frozen=True, slots=True)
class SpectrumBand:
    """The spectra of some modules together.

    `directions` is the largest number of singular values of one of them, `sigma_1` the largest value. `rank_90` and
    `rank_99` are the medians of the ranks that keep 90 and 99 % of each module's squared norm, None where these are
    unknown. `low`, `median` and `high` are the quantiles 10, 50 and 90 % of sigma_j / sigma_1, of the modules that have
    a j-th value.
    """

    modules: int
    directions: int
    sigma_1: float
    rank_90: int | None
    rank_99: int | None
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, layers: Iterable[LayerSpectrum]) -> "SpectrumBand":
        """Return the band of the modules that change anything."""
        own = [one for one in layers if one.values]
        most = max((len(one.values) for one in own), default=0)
        ratios = (sorted(one.values[at] / one.values[0] for one in own if at < len(one.values)) for at in range(most))
        bands = [tuple(_quantile(column, share) for share in QUANTILES) for column in ratios]
        low, middle, high = zip(*bands, strict=True) if bands else ((), (), ())
        ranks = [_median([one.ranks[at] for one in own]) for at in (0, 1)]
        sigma_1 = max((one.values[0] for one in own), default=0.0)
        return cls(len(own), most, sigma_1, ranks[0], ranks[1], low, middle, high)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON has them."""
        return {
            "modules": self.modules,
            "directions": self.directions,
            "sigma_1": self.sigma_1,
            "rank_90": self.rank_90,
            "rank_99": self.rank_99,
            "low": list(self.low[:_LISTED]),
            "median": list(self.median[:_LISTED]),
            "high": list(self.high[:_LISTED]),
        }


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile of sorted numbers, between two of them in proportion."""
    place = share * (len(ordered) - 1)
    at = math.floor(place)
    one, other = ordered[at], ordered[min(at + 1, len(ordered) - 1)]
    return one + (place - at) * (other - one)


def _median(ranks: Sequence[int | None]) -> int | None:
    known = [_UNKNOWN if rank is None else rank for rank in ranks]
    middle = median_low(known) if known else _UNKNOWN
    return None if middle == _UNKNOWN else middle


@dataclass(frozen=True, slots=True, repr=False)
class SpectrumResult(Result):
    """The spectra of an adapter's modules, of its parts, and of the blocks of each part in their order.

    `base` is the path of the model for changes that depend on a weight, None without one. `titles` are the common names
    of the parts. `left_out` are modules without a spectrum, with the reasons.
    """

    base: str | None
    layers: tuple[LayerSpectrum, ...]
    parts: dict[str, SpectrumBand]
    blocks: dict[str, dict[str, SpectrumBand]]
    titles: dict[str, str]
    left_out: "tuple[UnmeasuredModule, ...]"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, found: "MeasuredChanges", titles: dict[str, str], base: str | None = None, notes: Sequence[str] = ()
    ) -> "SpectrumResult":
        """Return the spectra of measured changes; vectors have none."""
        from lora_inspect.algebra.measures.change_sizes import by_block

        measured = [
            (size, own) for size, own in zip(found.sizes, found.spectra, strict=True) if size.sigma_1 is not None
        ]
        layers = {size: LayerSpectrum.of(size, own) for size, own in measured}
        parts = {
            name: {block: [layers[size] for size in own] for block, own in blocks.items()}
            for name, blocks in by_block(list(layers)).items()
        }
        return cls(
            base,
            tuple(layers.values()),
            {name: SpectrumBand.of(one for own in blocks.values() for one in own) for name, blocks in parts.items()},
            {name: {block: SpectrumBand.of(own) for block, own in blocks.items()} for name, blocks in parts.items()},
            titles,
            tuple(found.left_out),
            tuple(notes),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the field `spectrum` of the record that `info --spectrum --json` prints."""
        return {
            "base": self.base,
            "parts": parts_to_dict(self.parts, self.blocks),
            "layers": [one.to_dict() for one in self.layers],
            "left_out": [{"module": one.key, "reason": one.reason} for one in self.left_out],
        }
