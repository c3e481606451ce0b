"""Which model family a list of modules belongs to, and on which evidence.

A name counts for a layout when it is one of the layout's paths up to its numbers: every segment that is a number is
written `#` on both sides, so that matching is membership in a set. Families that share names are told apart by the
widths of their layers, then by the block indices, then by what the metadata says; families that even then fit alike
stay undecided.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from . import ARCHITECTURES
from .patterns import INDEX, pattern_of, patterns_of, separator_of
from .record import Architecture, Layout, Size

METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture")


@dataclass(frozen=True, slots=True)
class Detection:
    """A family that a list of modules fits, the layout of its names, its published size, and the evidence.

    `size` is None where the family has one size only, or where the widths given tell none. `says` is one sentence.
    """

    architecture: Architecture
    layout: Layout
    size: str | None
    says: str


@dataclass(frozen=True, slots=True)
class _Fit:
    """A family whose names fit, with the sizes that the widths leave it.

    `sizes` holds the entry of `Architecture.sizes` that shows each size that fits; it is None where no width that
    tells sizes was given, and empty where the widths given fit no size.
    """

    architecture: Architecture
    layout: Layout
    sizes: tuple[Size, ...] | None


def detect(
    modules: Iterable[tuple[str, int | None, int | None]],
    metadata: Mapping[str, str],
    *,
    minimum_share: float = 0.9,
) -> Detection | None:
    """The one family whose names the modules have, or None where no family fits or several fit alike.

    `modules` are (path, out features, in features), the path dotted or underscored and without a scheme's prefix,
    the features None where unknown. `minimum_share` is the share of the names that must fit: leave it for an adapter,
    lower it to about 0.5 for a base checkpoint, whose norms and embeddings are no layers of an adapter.
    """
    found = candidates(modules, metadata, minimum_share=minimum_share)
    return found[0] if len(found) == 1 else None


def candidates(
    modules: Iterable[tuple[str, int | None, int | None]],
    metadata: Mapping[str, str],
    *,
    minimum_share: float = 0.9,
) -> tuple[Detection, ...]:
    """All families that the evidence leaves, in the registry's order; the arguments are those of `detect`."""
    modules = tuple(modules)
    shapes: dict[str, set[tuple[int | None, int | None]]] = {}
    counts: Counter[str] = Counter()
    for path, out_features, in_features in modules:
        pattern = pattern_of(path, separator_of(path))
        counts[pattern] += 1
        shapes.setdefault(pattern, set()).add((out_features, in_features))

    matched, layouts = _best_layouts(counts)
    if not layouts or matched < minimum_share * len(modules):
        return ()
    left = tuple(_Fit(architecture, layout, _sizes(architecture, shapes)) for architecture, layout in layouts)
    named = _named_by(metadata)

    reasons: list[str] = []
    if len(left) > 1 and any(fit.sizes for fit in left):
        left = _narrowed(left, [fit for fit in left if fit.sizes != ()], "the widths rule out", reasons)
    if len(left) > 1:
        last = _last_indices(path for path, _, _ in modules)
        left = _narrowed(left, [fit for fit in left if _holds(fit.layout, last)], "the block indices rule out", reasons)
        left = _narrowed(left, [fit for fit in left if _fills(fit.layout, last)], "the block count rules out", reasons)
    if len(left) > 1:
        left = _narrowed(
            left, [fit for fit in left if fit.architecture.name in named], "the metadata rules out", reasons
        )

    share = f"{matched} of {len(modules)} module names fit"
    return tuple(
        Detection(fit.architecture, fit.layout, _size_name(fit), _sentence(fit, share, reasons, named)) for fit in left
    )


@cache
def _patterns(separator: str) -> tuple[frozenset[str], ...]:
    """The patterns of every layout, in the registry's order."""
    return tuple(
        patterns_of(layout.paths, separator) for architecture in ARCHITECTURES for layout in architecture.layouts
    )


def _best_layouts(counts: Mapping[str, int]) -> tuple[int, tuple[tuple[Architecture, Layout], ...]]:
    """How many names the best layouts match, and those layouts, the first of each family that matches so many."""
    tables = [_patterns(separator) for separator in {separator_of(pattern) for pattern in counts}]
    layouts = ((architecture, layout) for architecture in ARCHITECTURES for layout in architecture.layouts)
    best = 1
    found: dict[str, tuple[Architecture, Layout]] = {}
    for (architecture, layout), *known in zip(layouts, *tables, strict=True):
        matched = sum(count for pattern, count in counts.items() if any(pattern in patterns for patterns in known))
        if matched > best:
            best, found = matched, {}
        if matched == best:
            found.setdefault(architecture.name, (architecture, layout))
    return best, tuple(found.values())


def _sizes(
    architecture: Architecture, shapes: Mapping[str, set[tuple[int | None, int | None]]]
) -> tuple[Size, ...] | None:
    """The sizes that every width given agrees with, each by an entry that shows it; None where none was given."""
    told: dict[tuple[str | None, str], list[Size]] = {}
    for size in architecture.sizes:
        for separator in "._":
            pattern = pattern_of(size.path, separator)
            if pattern in shapes:
                told.setdefault((size.name, pattern), []).append(size)
                break

    shown: dict[str | None, Size] = {}
    wrong: set[str | None] = set()
    for (name, pattern), entries in told.items():
        for shape in shapes[pattern]:
            # Two leaves of one pattern, such as `ffn.0` and `ffn.2`, are alternatives for a shape.
            telling = [entry for entry in entries if _tells(entry, *shape)]
            agreeing = [entry for entry in telling if _agrees(entry, *shape)]
            if agreeing:
                shown.setdefault(name, agreeing[0])
            elif telling:
                wrong.add(name)
    if not shown and not wrong:
        return None
    return tuple(size for name, size in shown.items() if name not in wrong)


def _tells(size: Size, out_features: int | None, in_features: int | None) -> bool:
    return None not in (size.out_features, out_features) or None not in (size.in_features, in_features)


def _agrees(size: Size, out_features: int | None, in_features: int | None) -> bool:
    return (None in (size.out_features, out_features) or size.out_features == out_features) and (
        None in (size.in_features, in_features) or size.in_features == in_features
    )


def _last_indices(paths: Iterable[str]) -> dict[str, int]:
    """The highest index below each module list, by the pattern of the list's path."""
    last: dict[str, int] = {}
    for path in paths:
        separator = separator_of(path)
        above = ""
        for segment in path.split(separator):
            if INDEX["."].fullmatch(segment):
                # Ten digits are past any block count, and int() of thousands of digits is an error.
                last[above] = max(last.get(above, 0), int(segment[:10]))
                segment = "#"
            above = f"{above}{separator}{segment}" if above else segment
    return last


def _last_index(at: str, last: Mapping[str, int]) -> int | None:
    return last.get(pattern_of(at, "."), last.get(pattern_of(at, "_")))


def _holds(layout: Layout, last: Mapping[str, int]) -> bool:
    """Whether no index is beyond the layout's blocks."""
    return all((_last_index(at, last) or 0) < count for at, count in layout.blocks)


def _fills(layout: Layout, last: Mapping[str, int]) -> bool:
    """Whether every module list of the layout is used up to its last block."""
    return bool(layout.blocks) and all(_last_index(at, last) == count - 1 for at, count in layout.blocks)


def _narrowed(left: tuple[_Fit, ...], kept: Sequence[_Fit], cause: str, reasons: list[str]) -> tuple[_Fit, ...]:
    """`kept`, noting what that rules out and why; evidence that speaks for none of the families decides nothing."""
    gone = [fit.architecture.title for fit in left if fit not in kept]
    if not kept or not gone:
        return left
    reasons.append(f"{cause} {_listed(gone)}")
    return tuple(kept)


def _listed(titles: Sequence[str]) -> str:
    """The titles as a sentence lists them: `A`, `A and B`, `A, B and C`."""
    *others, last = titles
    return f"{', '.join(others)} and {last}" if others else last


def _named_by(metadata: Mapping[str, str]) -> dict[str, str]:
    """The families that the metadata names, by name, each with the value that names it."""
    named: dict[str, str] = {}
    for key in METADATA_KEYS:
        value = metadata.get(key, "")
        plain = value.lower().removesuffix("/lora")
        for architecture in ARCHITECTURES:
            if plain in (name.lower() for name in architecture.metadata_names):
                named[architecture.name] = value
    return named


def _size_name(fit: _Fit) -> str | None:
    return fit.sizes[0].name if fit.sizes and len(fit.sizes) == 1 else None


def _sentence(fit: _Fit, share: str, reasons: Sequence[str], named: Mapping[str, str]) -> str:
    """The evidence for one family, in one sentence."""
    parts = [f"{share} the {fit.layout.name} layout of {fit.architecture.title}", *reasons]
    name = _size_name(fit)
    if fit.sizes and name is not None:
        width = fit.sizes[0].in_features or fit.sizes[0].out_features
        parts.append(f"width {width} is the {name} model")
    elif fit.sizes == ():
        parts.append("the widths fit no published size")
    for other, value in named.items():
        if other != fit.architecture.name:
            parts.append(f"the metadata says {value!r}, which the names do not bear out")
    return "; ".join(parts)
