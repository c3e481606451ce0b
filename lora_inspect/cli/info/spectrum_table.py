"""The table of `info --spectrum`: a row for each part and block, with its singular values as a curve or as numbers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_inspect.cli.info.norms_table import in_part, left_out_lines
from lora_inspect.cli.pictures import can_draw, sparkline
from lora_inspect.cli.terminal import FAINT, Line, Sheet

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.spectra import SpectrumBand, SpectrumResult

_HEADERS = ("part", "layers", "rank", "90%", "99%", "sigma_1")
_CURVE, _COLUMNS = "sigma_j", 12
# The places of the numbers that stand for the curve in a pipe.
_PLACES = (4, 16)
_INDENT = "  "


def spectrum_lines(sheet: Sheet, found: "SpectrumResult") -> Iterator[Line]:
    """Yield the table, and the sentences below it."""
    draws = can_draw()
    headers = [*_HEADERS, *([_CURVE] if draws else [f"s{place}/s1" for place in _PLACES])]
    rows = []
    for name, part in found.parts.items():
        rows.append(_row(found.titles.get(name, name), part, draws))
        blocks = found.blocks[name]
        if len(blocks) > 1:
            rows += [_row(_INDENT + in_part(block, name), own, draws) for block, own in blocks.items()]
    if rows:
        yield from sheet.table(rows, headers)
        course = "curve: sigma_j / sigma_1 from 1 to 0.001" if draws else "s4/s1: sigma_4 / sigma_1"
        yield from sheet.sentence(f"90%, 99%: the rank that keeps so much energy; {course}; medians of layers.", FAINT)
    yield from left_out_lines(sheet, found.left_out)


def _row(title: str, band: "SpectrumBand", draws: bool) -> list[str]:
    numbers = [f"{band.modules:,}", str(band.directions), *map(_rank, (band.rank_90, band.rank_99))]
    curve = [sparkline(band.median, _COLUMNS).ljust(_COLUMNS)] if draws else [_ratio(band, at) for at in _PLACES]
    return [title, *numbers, f"{band.sigma_1:.3g}", *curve]


def _rank(rank: int | None) -> str:
    return "-" if rank is None else str(rank)


def _ratio(band: "SpectrumBand", place: int) -> str:
    return f"{band.median[place - 1]:.2g}" if place <= len(band.median) else "-"
