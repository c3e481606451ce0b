"""The printed account of an adapter that was made of others, or would be."""

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_inspect.cli import terminal
from lora_inspect.sentences import counted, shortened, some

if TYPE_CHECKING:
    from lora_inspect.algebra.sum_result import SumResult

# How many ranks are listed one by one.
_LISTED = 8


def tell(result: "SumResult", as_json: bool, beside: Sequence[str] = ()) -> None:
    """Print all of it, with a text `beside` each input if there are any."""
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
        return
    where = result.output or "the output"
    verb = "has" if result.is_made else "would have"
    terminal.line(f"{where} {verb} {counted(result.modules, 'module')} of {counted(len(result.inputs), 'adapter')}")
    for one, text in zip(result.inputs, beside or [""] * len(result.inputs), strict=True):
        terminal.line(f"  {'  '.join(filter(None, (one['path'], one['settings'], text)))}")
    ranks = f"{ranks_in_words(result.ranks)}, " if result.ranks else ""
    terminal.line(f"{ranks}{result.dtype}, {result.bytes:,} bytes")
    terminal.line(error_in_words(result))
    if result.rounding is not None:
        terminal.line(f"rounding to {result.dtype}: relative error {result.rounding:.2g}")
    if ordered := result.order_matters:
        terminal.line(
            f"order: it matters for {counted(len(ordered), 'weight')} ({some(ordered, 3)}); the adapters apply in the "
            "order of the command line"
        )
    _tell_left_out(result.left_out)
    if result.offer:
        terminal.line(offer_in_words(result))


def ranks_in_words(ranks: dict[int, int]) -> str:
    """The ranks with the number of modules of each: `rank 32`, `rank 8 to 64`."""
    if len(ranks) == 1:
        return f"rank {next(iter(ranks))}"
    if len(ranks) <= _LISTED:
        return "rank " + ", ".join(f"{rank} ({counted(count, 'module')})" for rank, count in ranks.items())
    return f"rank {min(ranks)} to {max(ranks)}"


def error_in_words(result: "SumResult") -> str:
    """The error of the trims, of all modules and of the worst one."""
    if result.error < 1e-6:
        return "exact but for rounding"
    worst = f"; worst module {shortened(result.worst.module)}: {result.worst.error:.3g}" if result.worst else ""
    return f"keeps {share(result.energy)} of the energy: relative error {result.error:.3g}{worst}"


def share(energy: float) -> str:
    """A share in percent, with digits until it is seen to be below all of it."""
    digits = next((digits for digits in (1, 2, 3, 4, 5, 6) if round(100 * energy, digits) < 100), 1)
    return f"{100 * energy:.{digits}f}%"


def offer_in_words(result: "SumResult") -> str:
    """The size of an exact sum beside its first input, and the trim that it could have."""
    first, offer = result.inputs[0], result.offer
    assert offer is not None
    times = f", {result.bytes / first['bytes']:.1f} times the size of {os.path.basename(first['path'])}"
    return (
        f"{ranks_in_words(result.ranks)}{times}; --energy {offer.energy:g} would give rank {offer.rank} and "
        f"{size_in_words(offer.bytes)}"
    )


def _tell_left_out(left_out: dict[str, str]) -> None:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in left_out.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        terminal.aside(f"left out ({reason}): {_names(names)}")


def _names(names: Sequence[str]) -> str:
    return some(names, 3) if len(names) <= 3 else f"{len(names)} ({some(names, 3)})"


def size_in_words(count: int) -> str:
    """Bytes in the unit of --size that suits them."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"
