"""The table of `info --norms`: a row for each part and block of an adapter, and sentences on unusual modules."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lora_inspect.cli.pictures import bar, can_draw
from lora_inspect.cli.terminal import DOUBTFUL, FAINT, Line, Sheet
from lora_inspect.sentences import counted, some

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.change_sizes import UnmeasuredModule
    from lora_inspect.algebra.measures.sizes_by_part import PartSize, SizesByPart
    from lora_inspect.reporting.measurement import NormsResult

_HEADERS = ("part", "modules", "norm", "sigma_1")
_RELATIVE = "of weight"
_INDENT = "  "
# How many sentences of one kind there are, and names in one.
_MOST, _NAMES = 5, 2
# The columns of a bar.
_BAR = 10
_WARNING, _NOTE = ("!", DOUBTFUL), ("-", FAINT)


def norms_lines(sheet: Sheet, found: "NormsResult") -> Iterator[Line]:
    """Yield the table, and the sentences below it."""
    yield from table_lines(sheet, found)
    for findings, (mark, look) in ((found.spikes, _WARNING), (found.dead, _WARNING), (found.small_scales, _NOTE)):
        yield from _sentences(sheet, [one.says for one in findings], mark, look)
    if found.unusual:
        yield from sheet.sentence(f"{found.unusual.says}.")
    yield from not_told(sheet, found)


def table_lines(sheet: Sheet, found: "SizesByPart") -> Iterator[Line]:
    """Yield the table of the sizes, without rows if no module has one; on a terminal blocks have a bar."""
    headers = [*_HEADERS[:3], *([""] if can_draw() else []), *_HEADERS[3:], *([_RELATIVE] if found.base else [])]
    largest = max((own.norm for blocks in found.blocks.values() for own in blocks.values()), default=0.0)
    rows = []
    for name, part in found.parts.items():
        blocks = found.blocks[name]
        rows.append(_row(found.titles.get(name, name), part, headers, largest if len(blocks) == 1 else 0.0))
        if len(blocks) > 1:
            rows += [_row(_INDENT + in_part(block, name), own, headers, largest) for block, own in blocks.items()]
    if rows:
        yield from sheet.table(rows, headers)


def _row(title: str, size: "PartSize", headers: Sequence[str], largest: float) -> list[str]:
    """Return the cells of a row; its bar is the share of the largest norm, and empty if that is 0."""
    relative = "-" if size.relative_norm is None else f"{100.0 * size.relative_norm:.3g}%"
    sigma = "-" if size.sigma_1 is None else f"{size.sigma_1:.3g}"
    drawn = [bar(size.norm / largest if largest else 0.0, _BAR)] if "" in headers else []
    return [title, f"{size.modules:,}", f"{size.norm:.3g}", *drawn, sigma, relative][: len(headers)]


def in_part(block: str, component: str) -> str:
    """Return the block without its component, which the row of the part has."""
    return "others" if block == component else block.removeprefix(f"{component}.")


def _sentences(sheet: Sheet, says: Sequence[str], mark: str, look: str) -> Iterator[Line]:
    for one in says[:_MOST]:
        yield from sheet.sentence(f"{one}.", look, mark)
    if len(says) > _MOST:
        yield from sheet.sentence(f"{len(says) - _MOST:,} more of these: --json", look, mark)


def left_out_lines(sheet: Sheet, left_out: "Iterable[UnmeasuredModule]") -> Iterator[Line]:
    """Yield the modules that could not be measured, by reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in left_out:
        reasons[one.reason].append(one.key)
    yield from _sentences(sheet, [f"{_named(keys)} left out: {says}" for says, keys in reasons.items()], *_NOTE)


def not_told(sheet: Sheet, found: "SizesByPart") -> Iterator[Line]:
    """Yield the modules without a size, and those without a weight in the base."""
    yield from left_out_lines(sheet, found.left_out)
    if keys := found.without_weight:
        yield from sheet.sentence(f"{_named(keys)} without a weight in {found.base}.", FAINT, "-")


def _named(keys: Sequence[str]) -> str:
    return f"{counted(len(keys), 'module')} ({some(keys, _NAMES)})"
