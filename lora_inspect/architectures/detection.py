"""Which model family a list of modules belongs to, and on which evidence.

A name counts for a layout when it is one of the layout's paths up to its numbers: every segment that is a number is
written `#` on both sides, so that matching is membership in a set. Families that share names are told apart by the
widths of their layers, then by the text encoders that the file adapts too, by the block indices, and by what the
metadata says; families that even then fit alike are all candidates, and no one of them is the answer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache

from lora_inspect.listing import listed

from . import ARCHITECTURES
from .blocks import fills, holds, used_indices
from .claims import METADATA_KEYS, agrees_with_v2, named_by
from .patterns import pattern_of, patterns_of, separator_of
from .record import Architecture, Layout, Size
from .text_encoders import TextEncoder, has
from .widths import agreeing_sizes


@dataclass(frozen=True, slots=True)
class Detection:
    """A family that a list of modules fits, the layout of its names, its published size, and the evidence.

    `size` is None where the family has one size only, or where the widths given tell none. `says` is one sentence.
    """

    architecture: Architecture
    layout: Layout
    size: str | None
    says: str

    def __str__(self) -> str:
        return f"{self.architecture.title} {self.size}" if self.size else self.architecture.title


@dataclass(frozen=True, slots=True)
class _Fit:
    """A family whose names fit, with the sizes that the widths leave it.

    `sizes` holds the entry of `Architecture.sizes` that shows each size that fits; it is None where no width that
    tells sizes was given, and empty where the widths given fit no size.
    """

    architecture: Architecture
    layout: Layout
    sizes: tuple[Size, ...] | None = None


def detect(
    modules: Iterable[tuple[str, int | None, int | None]],
    metadata: Mapping[str, str],
    *,
    encoders: Iterable[TextEncoder] = (),
    minimum_share: float = 0.9,
) -> Detection | None:
    """The one family whose names the modules have, or None where no family fits or several fit alike.

    The arguments are those of `candidates`.
    """
    found = candidates(modules, metadata, encoders=encoders, minimum_share=minimum_share)
    return found[0] if len(found) == 1 else None


def candidates(
    modules: Iterable[tuple[str, int | None, int | None]],
    metadata: Mapping[str, str],
    *,
    encoders: Iterable[TextEncoder] = (),
    minimum_share: float = 0.9,
) -> tuple[Detection, ...]:
    """All families that the evidence leaves, in the registry's order.

    `modules` are (path, out features, in features), the path dotted or underscored and without a scheme's prefix,
    the features None where unknown. `encoders` are the text encoders that the file adapts beside them; without any
    module they alone decide. `minimum_share` is the share of the names that must fit: leave it for an adapter,
    lower it to about 0.5 for a base checkpoint, whose norms and embeddings are no layers of an adapter.
    """
    modules, encoders = tuple(modules), tuple(encoders)
    if modules:
        left, share = _fits_of_names(modules, minimum_share)
    else:
        left, share = _fits_of_encoders(encoders)
    named = named_by(metadata)
    reasons: list[str] = []
    for cause, fits in _evidence(modules, encoders, metadata, named):
        if len(left) > 1:
            left = _narrowed(left, fits, cause, reasons)
    return tuple(
        Detection(fit.architecture, fit.layout, _size_name(fit), _sentence(fit, share, reasons, named)) for fit in left
    )


def settled_by(found: Sequence[Detection]) -> str:
    """What would decide between the candidates, several of them, in one sentence."""
    ways: list[str] = []
    if own := [f"{path} ({one})" for one in found if (path := _own_path(one, found))]:
        ways.append(f"a layer that one of them alone has, such as {listed(own, 'or')}")
    if path := _telling_path(found):
        ways.append(f"the width of {path}")
    if values := [f"{name} ({one})" for one in found for name in one.architecture.metadata_names[:1]]:
        ways.append(f"{METADATA_KEYS[0]} in the metadata, {listed(values, 'or')}")
    settles = f"; what would settle it: {'; '.join(ways)}" if ways else ""
    return f"it is open which of {listed([str(one) for one in found])} it is{settles}"


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


def _fits_of_names(
    modules: Sequence[tuple[str, int | None, int | None]], minimum_share: float
) -> tuple[tuple[_Fit, ...], str]:
    """The families with the most of the names, and how many they have, as the begin of a sentence."""
    shapes: dict[str, set[tuple[int | None, int | None]]] = {}
    counts: Counter[str] = Counter()
    for path, out_features, in_features in modules:
        pattern = pattern_of(path, separator_of(path))
        counts[pattern] += 1
        shapes.setdefault(pattern, set()).add((out_features, in_features))
    matched, layouts = _best_layouts(counts)
    if matched < minimum_share * len(modules):
        return (), ""
    fits = tuple(_Fit(family, layout, agreeing_sizes(family, shapes)) for family, layout in layouts)
    return fits, f"{matched} of {len(modules)} module names fit"


def _fits_of_encoders(encoders: Sequence[TextEncoder]) -> tuple[tuple[_Fit, ...], str]:
    """The families that have all text encoders of a file without any layer of the model itself."""
    if not encoders:
        return (), ""
    fits = tuple(_Fit(family, family.layouts[0]) for family in ARCHITECTURES if _has_all(family, encoders))
    return fits, f"{listed([str(encoder) for encoder in encoders])}, and no layer of the model itself, may be of"


def _evidence(
    modules: Sequence[tuple[str, int | None, int | None]],
    encoders: Sequence[TextEncoder],
    metadata: Mapping[str, str],
    named: Mapping[str, str],
) -> Iterator[tuple[str, Callable[[_Fit], bool | None]]]:
    """What can tell families apart whose names fit alike, strongest first, each with what it says of a family.

    That is True for it, False against it, and None where it says nothing.
    """
    used = used_indices(path for path, _, _ in modules)
    yield "the widths rule out", lambda fit: None if fit.sizes is None else bool(fit.sizes)
    if encoders:
        yield "the text encoders rule out", lambda fit: _has_all(fit.architecture, encoders)
    yield "the block indices rule out", lambda fit: holds(fit.layout, used)
    yield "the block count rules out", lambda fit: fills(fit.layout, used)
    yield "the metadata rules out", lambda fit: fit.architecture.name in named
    yield "ss_v2 rules out", lambda fit: agrees_with_v2(fit.architecture.name, metadata)


def _has_all(architecture: Architecture, encoders: Iterable[TextEncoder]) -> bool | None:
    """Whether all of these belong to the family; None where its text encoders are not known."""
    own = architecture.text_encoders
    return all(has(own, encoder) for encoder in encoders) if own else None


def _narrowed(
    left: tuple[_Fit, ...], fits: Callable[[_Fit], bool | None], cause: str, reasons: list[str]
) -> tuple[_Fit, ...]:
    """The families that the evidence does not speak against, noting which it rules out.

    Evidence that speaks for none of the families is about something else and decides nothing.
    """
    said = [(fit, fits(fit)) for fit in left]
    gone = [fit.architecture.title for fit, answer in said if answer is False]
    if not gone or not any(answer for _, answer in said):
        return left
    reasons.append(f"{cause} {listed(gone)}")
    return tuple(fit for fit, answer in said if answer is not False)


def _own_path(one: Detection, found: Sequence[Detection]) -> str | None:
    """A path of the candidate's layout that no other candidate's layout has, one in the blocks if there is any."""
    others = {path for other in found if other is not one for path in other.layout.paths}
    own = [path for path in one.layout.paths if path not in others]
    return next((path for path in own if "{i}" in path), own[0] if own else None)


def _telling_path(found: Sequence[Detection]) -> str | None:
    """The first path in all layouts that is as wide in each family as in no other."""
    for path in found[0].layout.paths:
        widths = [{size[2:] for size in map(astuple, one.architecture.sizes) if size[1] == path} for one in found]
        if all(widths) and len(set().union(*widths)) == sum(map(len, widths)):
            return path
    return None


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
