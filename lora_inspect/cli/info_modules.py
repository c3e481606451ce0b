"""The table of a file's modules: only the columns that say something, as wide as the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_inspect.cli.sheet import Line, Sheet

_HEADERS = ("algorithm", "shape", "rank", "alpha", "scale", "dora")


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
        for says, count in _counted(module["why"] for module in modules):
            yield from sheet.sentence(f"scale of {count:,}: {says}")


def _counted(reasons: Iterator[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return list(counts.items())


def _row(module: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        module["algorithm"],
        "x".join("?" if size is None else str(size) for size in module["shape"] or ()),
        "" if module["rank"] is None else str(module["rank"]),
        "" if module["alpha"] is None else f"{module['alpha']:g}",
        "unknown" if module["scale"] is None else f"{module['scale']:.6g}",
        module["dora"] or "",
    )
