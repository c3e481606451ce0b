"""The table of a file's modules: only the columns that say something, as wide as the terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_inspect.cli.sheet import Line, Sheet

_HEADERS = ("algorithm", "shape", "rank", "alpha", "scale", "dora")
_MOST_REASONS = 12


def table_of_modules(sheet: Sheet, modules: Sequence[Mapping[str, Any]], why: bool) -> Iterator[Line]:
    """A row for each module and algorithm; where scales are unknown, or with `why`, what they come from."""
    rows = [_row(module) for module in modules]
    # One algorithm for all is in the first line of the screen.
    shown = [
        at
        for at, name in enumerate(_HEADERS)
        if any(row[at] for row in rows) and (name != "algorithm" or len({row[at] for row in rows}) > 1)
    ]
    reasons = why or any(module["scale"] is None and module["why"] for module in modules)
    headers = ["module", *(_HEADERS[at] for at in shown)]
    yield from sheet.table(
        [[module["module"], *(row[at] for at in shown)] for module, row in zip(modules, rows, strict=True)], headers
    )
    if reasons:
        counts = Counter(module["why"] for module in modules).most_common()
        for says, count in counts[:_MOST_REASONS]:
            yield from sheet.sentence(f"scale of {count:,}: {says}")
        if len(counts) > _MOST_REASONS:
            yield from sheet.sentence(f"{len(counts) - _MOST_REASONS:,} more: --json")


def _row(module: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        module["algorithm"],
        "x".join("?" if size is None else str(size) for size in module["shape"] or ()),
        "" if module["rank"] is None else str(module["rank"]),
        "" if module["alpha"] is None else f"{module['alpha']:g}",
        "unknown" if module["scale"] is None else f"{module['scale']:.6g}",
        module["dora"] or "",
    )
