"""The page of `report`: the content of its pictures, tables and folds, and the numbers of all of them as JSON."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.model.evidence import ERROR, WARNING
from lora_inspect.reporting import charts
from lora_inspect.reporting.adapter_facts import KEPT, AdapterFacts, Trimmed
from lora_inspect.reporting.charts import NAME, Curve
from lora_inspect.reporting.heat_map import HeatMap, Table
from lora_inspect.sentences import counted, few, printable, shortened, size_in_words
from lora_inspect.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template

    from lora_inspect.algebra.measures.spectra import LayerSpectrum
    from lora_inspect.reporting.stack_facts import StackFacts

SCHEMA = "lora-inspect/page/1"
_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
# So many digits of a number, singular values of a layer, and entries of metadata stand in the page.
_DIGITS, _VALUES, _ENTRIES = 4, 128, 200
# The columns of a value of the metadata.
_VALUE = 400
# So many ranks stand in the small table.
_RANKS = 6
_GOOD, _WARN, _BAD, _PLAIN = "good", "warn", "bad", "plain"


class Chip(NamedTuple):
    """A short fact in a frame, its colour, and a longer one for the mouse."""

    text: str
    look: str
    title: str


class Command(NamedTuple):
    """A command to copy, and the sentence above it."""

    says: str
    line: str


class Fold(NamedTuple):
    """A part that a reader may unfold: names with values, or a map."""

    title: str
    items: tuple[tuple[str, str], ...] = ()
    map: "DrawnMap | None" = None


class Bar(NamedTuple):
    """A bar of a block: its height in percent, its number, and a longer text for the mouse."""

    height: float
    text: str
    title: str


class BarRow(NamedTuple):
    """The bars of one adapter below the columns of a map."""

    name: str
    title: str
    bars: list[Bar]


class DrawnMap(NamedTuple):
    """A map with its caption, and the rows of bars below a table of it."""

    map: "ScaledMap"
    caption: str
    strengths: Callable[[Table], list[BarRow]]


class ScaledMap:
    """A map with the words of its scale."""

    def __init__(self, found: HeatMap) -> None:
        self.tables, self.colour, self.number = found.tables, found.colour, found.number
        what = "norm of the change over that of the weights" if found.is_relative else "root mean square of the change"
        self.says = f"{what}, in units of 1e{found.exponent}"
        self.top_text = found.number(found.top)


def rendered(facts: Sequence[AdapterFacts], stack: "StackFacts | None", hashes: Sequence[Mapping[str, str]]) -> str:
    """Return the page of one adapter, or of several with the numbers of their stack."""
    from markupsafe import Markup

    fields = _of_stack(facts, stack) if stack else _of_one(facts[0])
    folded = [fold for one, own in zip(facts, hashes, strict=True) for fold in _folds(one, own, len(facts) > 1)]
    names = few([shortened(one.name, NAME) for one in facts])
    data = _without_markup(json.dumps(_numbers(facts, stack), separators=(",", ":"), allow_nan=False))
    return _template().render(
        title=f"{names} - lora-inspect",
        heading=names,
        adapters=[
            {
                "label": shortened(label, NAME),
                "headline": one.kind if stack else one.headline,
                "chips": list(_chips(one)),
            }
            for label, one in zip(stack.names if stack else [""], facts, strict=True)
        ],
        notes=[note for one in facts for note in _not_shown(one)],
        folded=folded,
        numbers=Markup(data),
        **fields,
    )


@cache
def _template() -> "Template":
    """Return the template, a file of this package; no part of an adapter is ever a template.

    Every text that it puts into the page is `printable`, so that no name of a file acts on a browser or an editor.
    """
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined, finalize=_to_printable).from_string(_PAGE)


def _to_printable(value: Any) -> Any:
    """Return a text as a terminal shows it; markup, whose texts are printable already, and numbers unchanged."""
    from markupsafe import Markup

    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _without_markup(text: str) -> str:
    """Return JSON in which nothing ends the element that holds it, or begins another."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _chips(one: AdapterFacts) -> Iterator[Chip]:
    if one.verdicts is None:
        yield Chip("programs: its scale is open", _BAD, "")
    else:
        right, count = one.right_in, len(one.meant)
        look = _GOOD if len(right) == count else _WARN if right else _BAD
        yield Chip(f"right in {len(right)} of {count} programs for it", look, ", ".join(right))
    severities = {problem.severity for problem in one.problems}
    look = _BAD if ERROR in severities else _WARN if WARNING in severities else _GOOD
    yield Chip(f"check: {one.problem_counts}", look, ", ".join(dict.fromkeys(p.code for p in one.problems)))
    share = one.shrunk / one.info.checkpoint.bytes if one.info.checkpoint.bytes else 1.0
    if one.is_shrinkable:
        yield Chip(
            f"shrinkable to {share:.0%} at {KEPT:.0%} energy", _PLAIN, f"about {size_in_words(one.shrunk)} by resize"
        )
    else:
        yield Chip(f"no smaller at {KEPT:.0%} energy", _PLAIN, "")
    yield Chip(size_in_words(one.info.checkpoint.bytes), _PLAIN, f"{one.info.checkpoint.bytes:,} bytes")


def _not_shown(one: AdapterFacts) -> Iterator[str]:
    """Yield the modules without a size, by the reason."""
    reasons: dict[str, list[str]] = {}
    for left in one.norms.left_out:
        reasons.setdefault(left.reason, []).append(left.key)
    for reason, keys in reasons.items():
        says = reason.replace("info --norms --base BASE measures it", "report --base BASE shows it")
        yield shortened(f"{one.name}: {counted(len(keys), 'module')} not shown: {says}.", 300)


def _of_one(one: AdapterFacts) -> dict[str, Any]:
    """Return the pictures and commands of one adapter."""
    drawn = _map_of(one, one.main) if one.main else None
    layers = [layer for layer in one.layers if layer.component == one.main and layer.values]
    trims = one.trims
    return {
        "map": drawn,
        "spectrum": charts.spectrum_picture(one.spectrum.parts.get(one.main), layers, _nominal(one)),
        "energy": charts.energy_picture([trims], [one.name]),
        "trims": [_trim_words(trim) for trim in _some_trims(trims)],
        "matrices": [],
        "sentences": [],
        "commands": [Command(says, line) for says, line in one.commands],
    }


def _nominal(one: AdapterFacts) -> int | None:
    """Return the commonest rank of the file."""
    ranks: Mapping[str, int] = one.record["ranks"]
    known = [rank for rank in ranks if rank.isdecimal()]
    return int(max(known, key=lambda rank: ranks[rank])) if known else None


def _some_trims(trims: Sequence[Trimmed]) -> list[Trimmed]:
    """Return the trims to ranks that are powers of two, the last few of them, and to the largest rank."""
    powers = [trim for trim in trims if trim.rank & (trim.rank - 1) == 0 and trim.rank < len(trims)]
    return [*powers[-_RANKS + 1 :], *trims[-1:]]


def _trim_words(trim: Trimmed) -> dict[str, str]:
    return {"rank": str(trim.rank), "energy": f"{100.0 * trim.energy:.4g} %", "size": size_in_words(trim.bytes)}


def _map_of(one: AdapterFacts, component: str) -> DrawnMap:
    found = one.heat_map(component)
    title = printable(one.norms.titles.get(component, component))
    caption = f"Strength by layer and block: {title}"
    return DrawnMap(ScaledMap(found), caption, lambda table: [_bars("block", "norm of a block", table, found.most)])


def _bars(name: str, title: str, table: Table, most: float, norms: Sequence[float] | None = None) -> BarRow:
    own = norms if norms is not None else [column.norm for column in table.columns]
    bars = [
        Bar(
            round(100.0 * norm / most, 1) if most else 0.0,
            f"{norm:.0f}" if norm >= 99.5 else f"{norm:.2g}",
            f"{column.title}: norm {norm:.4g}",
        )
        for column, norm in zip(table.columns, own, strict=True)
    ]
    return BarRow(name, title, bars)


def _of_stack(facts: Sequence[AdapterFacts], stack: "StackFacts") -> dict[str, Any]:
    """Return the pictures of several adapters, and the numbers of their stack."""
    bands = [one.spectrum.parts.get(one.main) for one in facts]
    last = max((band.directions for band in bands if band), default=1)
    names = [shortened(name, NAME) for name in stack.names]
    curves = [
        Curve(charts.spectrum_points(band.median, last) if band else "", name)
        for band, name in zip(bands, names, strict=True)
    ]
    found = stack.heat_map
    most = max([found.most, *(norm for own in stack.norms.values() for norm in own)], default=0.0)

    def strengths(table: Table) -> list[BarRow]:
        rows = [_bars("sum", "norm of the sum in a block", table, most)]
        for at, name in enumerate(names):
            norms = [stack.norms.get((one.list, one.number), [0.0] * len(names))[at] for one in table.columns]
            rows.append(_bars(f"{at + 1}", name, table, most, norms))
        return rows

    return {
        "map": DrawnMap(ScaledMap(found), "Strength of the sum by layer and block", strengths),
        "spectrum": charts.picture(
            curves,
            "Median of the singular values over the first one, by their number",
            "j of sigma_j / sigma_1, medians of layers",
            charts.rank_ticks(1, last),
            charts.RATIO_TICKS,
        ),
        "energy": charts.energy_picture([one.trims for one in facts], names),
        "trims": [],
        "matrices": [
            {"caption": caption, "names": names, "rows": [[_cell(number) for number in row] for row in matrix]}
            for caption, matrix in (("Cosine", stack.cosine), ("Overlap of directions", stack.overlap))
        ],
        "sentences": stack.sentences,
        "commands": [Command(says, line) for says, line in stack.commands],
    }


def _cell(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}".replace("-0.000", "0.000")


def _folds(one: AdapterFacts, hashes: Mapping[str, str], is_of_several: bool) -> Iterator[Fold]:
    """Yield the further parts, the problems, the programs, the evidence, the metadata and the hashes of an adapter."""
    behind = f" of {shortened(one.name, NAME)}" if is_of_several else ""
    parts = [name for name in one.norms.parts if name != one.main or is_of_several]
    for name in parts:
        yield Fold(f"map of the {printable(one.norms.titles.get(name, name))}{behind}", (), _map_of(one, name))
    if one.problems:
        items = tuple((f"{p.severity} {p.code}", shortened(p.message, _VALUE)) for p in one.problems)
        yield Fold(f"{len(items)} problems{behind}" if len(items) > 1 else f"1 problem{behind}", items)
    if one.verdicts:
        told = tuple((v.program.title, f"{v.verdict}{f': {v.says}' if v.says else ''}") for v in one.verdicts)
        yield Fold(f"programs{behind}", tuple((name, shortened(says, _VALUE)) for name, says in told))
    evidence = tuple((e["about"], shortened(f"{e['says']} [{e['where']}]", _VALUE)) for e in one.record["evidence"])
    if evidence:
        yield Fold(f"evidence{behind}", evidence)
    metadata = one.info.checkpoint.metadata
    if metadata:
        shown = [(shortened(name, NAME), shortened(value, _VALUE)) for name, value in list(metadata.items())[:_ENTRIES]]
        if len(metadata) > _ENTRIES:
            shown.append(("...", f"{len(metadata) - _ENTRIES:,} more: lora-inspect metadata show"))
        yield Fold(f"metadata{behind}", tuple(shown))
    if hashes:
        yield Fold(f"hashes{behind}", tuple(hashes.items()))
    if one.norms.unusual:
        yield Fold(f"most unusual layer{behind}", (("", one.norms.unusual.says),))


def _numbers(facts: Sequence[AdapterFacts], stack: "StackFacts | None") -> dict[str, Any]:
    """Return all numbers of the page, with four digits."""
    data = {
        "schema": SCHEMA,
        "version": __version__,
        "adapters": [_of_adapter(one) for one in facts],
        "stack": stack.to_dict() if stack else None,
    }
    short: dict[str, Any] = _rounded(data)
    return short


def _of_adapter(one: AdapterFacts) -> dict[str, Any]:
    spectra = {layer.key: layer for layer in one.layers}
    return {
        "path": one.path,
        "headline": one.headline,
        "bytes": one.info.checkpoint.bytes,
        "shrunk_bytes": one.shrunk,
        "programs": {verdict.program.name: verdict.verdict for verdict in one.verdicts or ()},
        "problems": [{"code": p.code, "severity": p.severity, "message": p.message} for p in one.problems],
        "parts": {
            name: {**part.to_dict(), "spectrum": band.to_dict() if (band := one.spectrum.parts.get(name)) else None}
            for name, part in one.norms.parts.items()
        },
        "layers": [
            {
                "module": size.key,
                "component": size.component,
                "block": size.block,
                "shape": list(size.shape),
                "rank": size.rank,
                "alpha": size.alpha,
                "scale": size.scale,
                "norm": size.norm,
                "relative_norm": size.relative_norm,
                **_values(spectra.get(size.key) if size.sigma_1 is not None else None),
            }
            for size in one.norms.sizes
        ],
        "trims": [list(trim) for trim in one.trims],
        "left_out": [{"module": left.key, "reason": left.reason} for left in one.norms.left_out],
    }


def _values(layer: "LayerSpectrum | None") -> dict[str, Any]:
    if layer is None:
        return {"values": [], "rest": None, "rank_90": None, "rank_99": None}
    return {
        "values": list(layer.values[:_VALUES]),
        "rest": math.hypot(layer.rest, *layer.values[_VALUES:]),
        "rank_90": layer.ranks[0],
        "rank_99": layer.ranks[1],
    }


def _rounded(value: Any) -> Any:
    """Return the value with all its numbers in four digits; whole numbers stay."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _rounded(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(own) for own in value]
    return value
