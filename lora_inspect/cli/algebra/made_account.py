"""The printed account of an adapter made of others, or of a planned one."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.sentences import counted, shortened, some

if TYPE_CHECKING:
    from lora_inspect.algebra.results import SumResult

# How many ranks are listed one by one.
_LISTED = 8
# Up to this relative error a trim leaves out nothing but rounding.
_ROUNDING = 1e-6
# The share of the bytes that a trim must save to be offered.
_WORTHWHILE = 0.1
# So many modules that were cut are listed; --json has all.
_CLIPS = 5


def tell(result: "SumResult", as_json: bool, beside: Sequence[str] = (), error: str = "") -> None:
    """Print the account, with a text of `beside` for each input if there are any.

    `error` is the sentence for an error that does not come from a trim.
    """
    if result.is_made and result.output:
        set_complete_outputs([result.output])
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
        return
    where = result.output or "the output"
    verb = "has" if result.is_made else "would have"
    terminal.line(f"{where} {verb} {modules_in_words(result)}, {result.dtype}, {size_in_words(result.bytes)}")
    for one, text in zip(result.inputs, beside or [""] * len(result.inputs), strict=True):
        argument = f"{one['path']}:{one['settings']}" if one["settings"] else one["path"]
        terminal.line(f"  from {'  '.join(filter(None, (argument, text)))}")
    if result.method:
        terminal.line(method_in_words(result.method))
    terminal.line(error or error_in_words(result))
    for line in _clips(result):
        terminal.line(line)
    if (result.rounding or 0.0) >= _ROUNDING and (error or (result.error or 0.0) >= _ROUNDING):
        terminal.line(f"rounding to {result.dtype} adds a relative error of {result.rounding:.1g}")
    if ordered := result.order_matters:
        terminal.line(
            f"the order of the adapters matters for {counted(len(ordered), 'weight')} ({some(ordered, 3)}); they apply "
            "in the order of the command line"
        )
    _tell_left_out(result.left_out)
    if result.dropped_metadata:
        terminal.aside(f"metadata that the output does not have: {_names(result.dropped_metadata)}")
    if result.offer and result.offer.bytes <= (1.0 - _WORTHWHILE) * result.bytes:
        terminal.line(offer_in_words(result))


def modules_in_words(result: "SumResult") -> str:
    """Return the number of modules with their ranks; differences and whole factors have no rank."""
    modules = counted(result.modules, "module")
    others = max(0, result.modules - sum(result.ranks.values()))
    if others == 0:
        return f"{modules}{' of' if len(result.ranks) == 1 else ':'} {ranks_in_words(result.ranks)}"
    ranked = f": {result.modules - others:,} of {ranks_in_words(result.ranks)}, {others:,}" if result.ranks else ""
    return f"{modules}{ranked} without a rank"


def ranks_in_words(ranks: dict[int, int]) -> str:
    """Return the ranks: `rank 32`, `rank 8 (2 modules), 16 (1 module)`, `rank 8 to 64`."""
    if len(ranks) == 1:
        return f"rank {next(iter(ranks))}"
    if len(ranks) <= _LISTED:
        return "rank " + ", ".join(f"{rank} ({counted(count, 'module')})" for rank, count in ranks.items())
    return f"rank {min(ranks)} to {max(ranks)}"


def error_in_words(result: "SumResult") -> str:
    """Return the error of the trims, in all and in the worst module; for an exact sum that of rounding."""
    if result.error is None or result.energy is None:
        return "the error cannot be told"
    if result.error < _ROUNDING:
        whole = "all of the result" if result.method else "exact"
        if result.rounding is None:
            return f"{whole} but for rounding"
        rounding = f" but for rounding to {result.dtype} (relative error {result.rounding:.1g})"
        return f"{whole}{rounding if result.rounding else ''}"
    worst = f" (worst: {result.worst.error:.3g} in {shortened(result.worst.module)})" if result.worst else ""
    return f"keeps {share(result.energy)} of the energy: relative error {result.error:.3g}{worst}"


def method_in_words(method: Mapping[str, Any]) -> str:
    """Return the method and its settings: `method ties, density 0.5, clip-sigma 2.0`."""
    settings = (f"{name.replace('_', '-')} {value}" for name, value in method.items() if name != "name")
    return ", ".join([f"method {method['name']}", *settings])


def carried_in_words(result: "SumResult") -> list[str]:
    """Return the share of each input in the result, or none for a plain sum."""
    return [] if result.shares is None else [f"carried {_carried(share)}" for share in result.shares]


def _carried(share: float | None) -> str:
    return "not, as it changes nothing" if share is None else percent(share)


def percent(share: float) -> str:
    """Return a carried share, which may be above 1 or below 0, in percent."""
    return f"{share:.1%}"


def _clips(result: "SumResult") -> Iterator[str]:
    for one in sorted(result.clipped, key=lambda one: -one.value)[:_CLIPS]:
        yield f"  cut from {one.value:.4g}: {shortened(one.module)}, {one.cut:.1%} of its energy"
    if len(result.clipped) > _CLIPS:
        yield f"  and {counted(len(result.clipped) - _CLIPS, 'more module')}"


def energy_and_error(result: "SumResult") -> tuple[str, str]:
    """Return energy and error as cells of a table."""
    lost = result.error or 0.0
    return ("all", "-") if lost < _ROUNDING else (share(1.0 - lost**2), f"{lost:.3g}")


def share(energy: float) -> str:
    """Return a share in percent, with enough digits to differ from 100."""
    digits = next((digits for digits in (1, 2, 3, 4, 5, 6) if round(100 * energy, digits) < 100), None)
    return "nearly all" if digits is None else f"{100 * energy:.{digits}f}%"


def offer_in_words(result: "SumResult") -> str:
    """Return the trim that would make an exact sum smaller, with its size."""
    offer = result.offer
    assert offer is not None
    return (
        f"smaller: --energy {offer.energy:g} would give rank {offer.rank} at most and {size_in_words(offer.bytes)}, "
        f"{offer.bytes / result.bytes:.0%} of this size"
    )


def _tell_left_out(left_out: dict[str, str]) -> None:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in left_out.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        terminal.aside(f"left out ({reason.removeprefix('left out ')}): {_names(names)}")


def _names(names: Sequence[str]) -> str:
    return some(names, 3) if len(names) <= 3 else f"{len(names):,} keys ({some(names, 3)})"


def size_in_words(count: int) -> str:
    """Return a number of bytes, in MB or GB if it is large."""
    if count < 1_000_000:
        return f"{count:,} bytes"
    return f"{count / 1e6:,.1f} MB" if count < 1_000_000_000 else f"{count / 1e9:,.2f} GB"
