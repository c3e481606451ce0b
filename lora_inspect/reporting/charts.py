"""The coordinates of curves in a picture: scales from numbers to places, and the ticks of the axes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reporting.adapter_facts import KEPT, Trimmed
from lora_inspect.sentences import shortened, size_in_words

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.spectra import LayerSpectrum, SpectrumBand

# The size of a picture in its own units, and the room at its left, right, top and bottom.
WIDTH, HEIGHT = 380, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 30
# The least ratio of singular values that is drawn, and so many points of a curve.
FLOOR = 1e-3
_POINTS = 64
_STUB = 6
# The columns of a name in a legend.
NAME = 120


class Tick(NamedTuple):
    """A number at an axis, and its place there."""

    at: float
    text: str


class Curve(NamedTuple):
    """A line through points, as the attribute `points` of a polyline has them, and its name."""

    points: str
    name: str


def places(count: int) -> list[int]:
    """Return at most 64 places in a list of so many numbers, the first and the last among them."""
    if count <= _POINTS:
        return list(range(count))
    return [round(at * (count - 1) / (_POINTS - 1)) for at in range(_POINTS)]


def across(place: float, first: float, last: float) -> float:
    """Return the horizontal place of a number between two."""
    share = (place - first) / (last - first) if last > first else 0.5
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def ratio_height(ratio: float) -> float:
    """Return the vertical place of a ratio from 1 to 0.001 on a logarithmic scale; smaller ones are at the bottom."""
    return _height(1.0 + math.log10(max(ratio, FLOOR)) / -math.log10(FLOOR))


def share_height(share: float) -> float:
    """Return the vertical place of a share between 0 and 1."""
    return _height(share)


def _height(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def spectrum_points(values: Sequence[float], last: int) -> str:
    """Return the points of sigma_j / sigma_1 over j, from 1 to the last place of the axis."""
    if not values:
        return ""
    points = [f"{across(at + 1, 1, last):g},{ratio_height(values[at]):g}" for at in places(len(values))]
    # A single one is drawn as a short line.
    return " ".join(points) if len(points) > 1 else f"{points[0]} {across(1, 1, last) + _STUB:g},{ratio_height(1.0):g}"


def band_points(low: Sequence[float], high: Sequence[float], last: int) -> str:
    """Return the points of a polygon between two curves."""
    back = [f"{across(at + 1, 1, last):g},{ratio_height(low[at]):g}" for at in reversed(places(len(low)))]
    return " ".join([spectrum_points(high, last), *back])


def energy_points(shares: Sequence[float], last: int) -> str:
    """Return the points of the energy that each rank keeps, from rank 0 on."""
    whole = [0.0, *shares]
    return " ".join(f"{across(at, 0, last):g},{share_height(whole[at]):g}" for at in places(len(whole)))


def rank_ticks(first: int, last: int) -> list[Tick]:
    """Return the ranks on the horizontal axis: both ends, and round numbers between them."""
    step = next((step for step in _steps() if (last - first) / step <= 6), 1)
    between = [number for number in range(step, last, step) if first < number <= last - step / 2]
    return [Tick(across(number, first, last), str(number)) for number in dict.fromkeys((first, *between, last))]


def _steps() -> list[int]:
    return [base * 10**power for power in range(5) for base in (1, 2, 4, 5)]


RATIO_TICKS = [Tick(ratio_height(10.0**-power), text) for power, text in enumerate(("1", "0.1", "0.01", "0.001"))]
SHARE_TICKS = [Tick(share_height(share / 100), f"{share} %") for share in (0, 25, 50, 75, 100)]


def spectrum_picture(
    band: "SpectrumBand | None", layers: "Sequence[LayerSpectrum]", nominal: int | None
) -> dict[str, Any]:
    """Return the band over the layers, the three extreme ones by name, and a mark at the rank of the file."""
    last = band.directions if band else 1
    curves = []
    if layers and band:
        curves.append(Curve(spectrum_points(band.median, last), "median, 10 to 90 % of the layers"))
    curves += [Curve(spectrum_points(_ratios(layer), last), name) for layer, name in _extremes(layers)]
    marks = [Tick(across(nominal, 1, last), f"rank {nominal}")] if nominal and nominal <= last else []
    area = band_points(band.low, band.high, last) if layers and band else ""
    says, axis = "Singular values over the first one, by their number", "j of sigma_j / sigma_1"
    return picture(curves, says, axis, rank_ticks(1, last), RATIO_TICKS, marks, area)


def _ratios(layer: "LayerSpectrum") -> list[float]:
    return [value / layer.values[0] for value in layer.values]


def _extremes(layers: "Sequence[LayerSpectrum]") -> "list[tuple[LayerSpectrum, str]]":
    """Return the layers with the steepest and flattest spectrum and the one with the largest singular value."""
    if not layers:
        return []
    steepest, flattest = min(layers, key=_stable_rank), max(layers, key=_stable_rank)
    strongest = max(layers, key=lambda layer: layer.values[0])
    return [
        (layer, f"{word}: {shortened(layer.key, NAME)}")
        for word, layer in (("steepest", steepest), ("flattest", flattest), ("strongest", strongest))
    ]


def _stable_rank(layer: "LayerSpectrum") -> float:
    """Return ‖D‖² / sigma_1² (Rudelson & Vershynin 2007)."""
    return (layer.norm / layer.values[0]) ** 2


def energy_picture(found: Sequence[Sequence[Trimmed]], names: Sequence[str]) -> dict[str, Any]:
    """Return curves of the energy over the rank, a mark where the first one keeps 99 %, and ranks for file sizes."""
    last = max((len(trims) for trims in found), default=1) or 1
    curves = [
        Curve(energy_points([trim.energy for trim in trims], last), shortened(name, NAME))
        for name, trims in zip(names, found, strict=True)
    ]
    knee = next((trim for trim in found[0] if trim.energy >= KEPT), None) if len(found) == 1 else None
    says = f"rank {knee.rank}: {KEPT:.0%}, {size_in_words(knee.bytes)}" if knee else ""
    marks = [Tick(across(knee.rank, 0, last), says)] if knee else []
    ticks = rank_ticks(0, last)
    return picture(curves, "Energy kept by rank", "rank of all layers", ticks, SHARE_TICKS, marks)


def picture(
    curves: Sequence[Curve],
    says: str,
    axis: str,
    columns: Sequence[Tick],
    rows: Sequence[Tick],
    marks: Sequence[Tick] = (),
    band: str = "",
) -> dict[str, Any]:
    """Return the fields of a picture, as the template draws one: its curves, ticks at both axes, and marks."""
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "says": says,
        "axis": axis,
        "columns": columns,
        "rows": rows,
        "marks": marks,
        "curves": curves,
        "band": band,
    }
