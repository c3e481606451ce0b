"""Detection of the model family of a list of modules, with the evidence.

A name counts for a layout if it is one of the layout's paths up to its numbers: every segment that is a number is
written `#` on both sides, so matching is membership in a set. Evidence separates families that share names, in this
order: the widths of their layers, the text encoders that the file adapts too, layers that a family does not have, the
block indices, the metadata, and the prefix of the names. Families that still match alike are all candidates, and no one
of them is the answer.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from lora_inspect.caching import Remembered
from lora_inspect.sentences import listed

from ..fast_namedtuple import NamedTuple
from . import admitted, changes, every
from .patterns import layout_patterns, pattern_of, separator_of
from .record import Architecture, Layout, Size
from .stated_families import (
    BASE_KEY,
    METADATA_KEYS,
    MODULE_KEY,
    OF_ONETRAINER,
    ONETRAINER_KEY,
    STATING_KEYS,
    agrees_with_v2,
    base_of,
    named_by,
    trained_by,
)
from .text_encoders import TextEncoder, has

Shape = tuple[int | None, int | None]


def agreeing_sizes(architecture: Architecture, shapes: Mapping[str, set[Shape]]) -> tuple[Size, ...] | None:
    """Return the sizes that agree with every given width, each by an entry that shows it, or None if none tells.

    `shapes` are the (out features, in features) of the modules by the pattern of their path.
    """
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


# Ten digits are past any block count, and int() of thousands of digits is an error.
_DIGITS = 10
# The path of no module list is as long.
_LONGEST_LIST = 256


def used_indices(
    paths: Sequence[str], patterns: Sequence[str], families: Iterable[Architecture]
) -> dict[str, set[int]]:
    """Return the indices below each module list of the families, by the list's pattern; `patterns` are the paths'."""
    layouts = (layout for architecture in families for layout in architecture.layouts)
    lists = frozenset[str]().union(*(_lists(layout.blocks) for layout in layouts))
    # Paths have few patterns, and most have few lists: only the segments that are an index of one are looked at.
    places: dict[str, Sequence[tuple[int, str]]] = {}
    used: dict[str, set[int]] = {}
    for path, pattern in zip(paths, patterns, strict=True):
        if pattern not in places:
            places[pattern] = _index_places(pattern, separator_of(pattern), lists)
        for at, above in places[pattern]:
            number = path.split(separator_of(path), at + 1)[at]
            if number.isdecimal():  # an `{i}` in the names of a file is no number
                used.setdefault(above, set()).add(int(number[:_DIGITS]))
    return used


def _index_places(pattern: str, separator: str, lists: Collection[str]) -> list[tuple[int, str]]:
    """Return the place of each segment that is an index of one of the `lists`, with the pattern of that list."""
    above, found = "", []
    for at, segment in enumerate(pattern.split(separator)):
        if segment == "#" and above in lists:
            found.append((at, above))
        above = f"{above}{separator}{segment}" if above else segment
        if len(above) > _LONGEST_LIST:
            break
    return found


@cache
def _lists(blocks: tuple[tuple[str, int], ...]) -> frozenset[str]:
    """Return the patterns of the paths of a layout's module lists."""
    return frozenset(pattern_of(at, separator) for at, _ in blocks for separator in "._")


def holds(layout: Layout, used: Mapping[str, set[int]]) -> bool:
    """Return True if no index is beyond the layout's blocks."""
    return all(max(_below(at, used), default=0) < count for at, count in layout.blocks)


# Fewer blocks may be those that somebody chose of a deeper model.
_LEAST_DEPTH = 8


def fills(layout: Layout, used: Mapping[str, set[int]]) -> bool:
    """Return True if the file uses long lists, and all blocks of each; a file without some may be of a deeper one."""
    lists = [(_below(at, used), count) for at, count in layout.blocks if count >= _LEAST_DEPTH]
    touched = [(blocks, count) for blocks, count in lists if blocks]
    return bool(touched) and all(blocks == set(range(count)) for blocks, count in touched)


def has_missing(layout: Layout, paths: Iterable[str]) -> bool:
    """Return True if one of the paths is of a layer that the models of the layout do not have."""
    starts = tuple(f"{path.replace('.', way)}{way}" for path in layout.missing for way in "._")
    return bool(starts) and any(f"{path}{separator_of(path)}".startswith(starts) for path in paths)


# Trainers put these before the underscored paths of a model. OneTrainer's stands before the names of diffusers, also of
# a family that other trainers train in its original names.
_UNDERSCORED = {"lora_unet_": "lora_unet_", "lora_unet__": "lora_unet_", "oft_unet_": "lora_unet_"}
_OVER_DIFFUSERS = "lora_transformer_"


def written_with(layout: Layout, prefixes: Collection[str]) -> bool | None:
    """Return True if trainers write the layout behind the file's prefix, or None if any layout may stand there."""
    known = {_UNDERSCORED[prefix] for prefix in prefixes if prefix in _UNDERSCORED}
    return layout.kohya_prefix in known if known and len(prefixes) == 1 else None


def has_underscores(layout: Layout, prefixes: Collection[str]) -> bool | None:
    """Return True if the layout is ever written behind underscored prefixes; None for prefixes of other kinds."""
    return bool(layout.kohya_prefix) if any(one in _UNDERSCORED or one == _OVER_DIFFUSERS for one in prefixes) else None


def _below(at: str, used: Mapping[str, set[int]]) -> set[int]:
    return used.get(pattern_of(at, "."), set()) | used.get(pattern_of(at, "_"), set())


# A family of other widths than any that it is published in has at least so much of the names, also of a base.
_SHARE_OF_ANOTHER_SIZE = 0.9
# What is remembered of the files that were read last: a folder holds many of the same modules.
_MOST_FILES, _MOST_MODULES, _LONGEST_SAID = 16, 2_000, 256


class Detection(NamedTuple):
    """A family that a list of modules fits, the layout of its names, its published size, and the evidence.

    `size` is None if the family has one size only, or if the given widths show none. `says` is one sentence.
    """

    architecture: Architecture
    layout: Layout
    size: str | None
    says: str

    def __str__(self) -> str:
        return f"{self.architecture.title} {self.size}" if self.size else self.architecture.title


class _Fit(NamedTuple):
    """A family with matching names, and the sizes that the widths allow.

    `sizes` holds the entry of `Architecture.sizes` that shows each matching size. It is None if the file gives no width
    that tells sizes apart, and empty if its widths match no size. `share` says how much of the file matches.
    """

    architecture: Architecture
    layout: Layout
    share: str
    sizes: tuple[Size, ...] | None = None


def detect(
    modules: Iterable[tuple[str, int | None, int | None]],
    metadata: Mapping[str, str],
    *,
    encoders: Iterable[TextEncoder] = (),
    prefixes: Iterable[str] = (),
    minimum_share: float = 0.9,
) -> Detection | None:
    """Return the one family that has the modules' names, or None if no family or several match.

    The arguments are those of `candidates`.
    """
    found = candidates(modules, metadata, encoders=encoders, prefixes=prefixes, minimum_share=minimum_share)
    return found[0] if len(found) == 1 else None


def candidates(
    modules: Iterable[tuple[str, int | None, int | None]],
    metadata: Mapping[str, str],
    *,
    encoders: Iterable[TextEncoder] = (),
    prefixes: Iterable[str] = (),
    minimum_share: float = 0.9,
) -> tuple[Detection, ...]:
    """Return all families that the evidence leaves, in the registry's order.

    `modules` are (path, out features, in features), the path dotted or underscored and without a scheme's prefix, the
    features None if unknown. `encoders` are the text encoders that the file adapts next to them; without any module
    only they decide. `minimum_share` is the share of the names that must match: leave it for an adapter, lower it to
    about 0.5 for a base checkpoint, as its norms and embeddings are no layers of an adapter.
    """
    modules, encoders, prefixes = tuple(modules), tuple(encoders), frozenset(prefixes)
    said = tuple([metadata.get(key, "") for key in STATING_KEYS])
    if len(modules) > _MOST_MODULES or max(map(len, said)) > _LONGEST_SAID:
        return _candidates(modules, metadata, encoders, prefixes, minimum_share)
    key = (modules, encoders, prefixes, minimum_share, said, changes())
    known = _found.get(key)
    if known is None:
        known = _candidates(modules, metadata, encoders, prefixes, minimum_share)
        _found.put(key, known)
    return known


def _candidates(
    modules: Sequence[tuple[str, int | None, int | None]],
    metadata: Mapping[str, str],
    encoders: Sequence[TextEncoder],
    prefixes: Collection[str],
    minimum_share: float,
) -> tuple[Detection, ...]:
    paths = [path for path, _, _ in modules]
    patterns = [pattern_of(path, separator_of(path)) for path in paths]
    fits = _fits_of_names(modules, patterns, minimum_share) if modules else _fits_of_encoders(encoders)
    used = used_indices(paths, patterns, (fit.architecture for fit in fits))
    named = named_by(metadata)
    reasons: list[str] = []
    trained = trained_by(metadata)
    left = fits
    for cause, says in _shown(paths, used, encoders, prefixes):
        left = _narrowed(left, says, cause, reasons)
    if len(left) < len(fits) and not any(holds(fit.layout, used) for fit in left):
        # As wide as that family and deeper than it is: one that is not known here, with the names of them all.
        left, reasons = fits, ["the widths and the block indices contradict each other"]
    for cause, says in _stated_families(metadata, named, trained, prefixes):
        left = _narrowed(left, says, cause, reasons)
    return tuple(
        Detection(fit.architecture, fit.layout, _size_name(fit), _sentence(fit, reasons, _denied(fit, metadata)))
        for fit in left
    )


# By all that decides.
_found: Remembered[Any, tuple[Detection, ...]] = Remembered(_MOST_FILES)


def settled_by(found: Sequence[Detection]) -> str:
    """Return one sentence with the evidence that would decide between several candidates."""
    ways: list[str] = []
    if own := [f"{path} ({one})" for one in found if (path := _own_path(one, found))]:
        ways.append(f"a layer that only one of them has, such as {listed(own, 'or')}")
    if path := _telling_path(found):
        ways.append(f"the width of {path}")
    if values := [f"{name} ({one})" for one in found for name in one.architecture.metadata_names[:1]]:
        ways.append(f"{METADATA_KEYS[0]} in the metadata, {listed(values, 'or')}")
    settles = f"; any of these would settle it: {'; '.join(ways)}" if ways else ""
    return f"it may be {listed([str(one) for one in found], 'or')}{settles}"


def _matching_layouts(counts: Mapping[str, int], least: float) -> dict[str, tuple[int, Architecture, Layout]]:
    """Return, by family, the number of names that its best layout matches, and the first such layout.

    Families without a layout that matches `least` are left out.
    """
    separators = {separator_of(pattern) for pattern in counts}
    found: dict[str, tuple[int, Architecture, Layout]] = {}
    families = admitted(counts, least)
    own = ((family, layout) for family in families for layout in family.layouts if not layout.borrowed)
    for architecture, layout in own:
        known = [layout_patterns(layout.paths, separator) for separator in separators]
        matched = sum(count for pattern, count in counts.items() if any(pattern in patterns for patterns in known))
        if matched >= least and matched > found.get(architecture.name, (0,))[0]:
            found[architecture.name] = (matched, architecture, layout)
    return found


def _fits_of_names(
    modules: Sequence[tuple[str, int | None, int | None]], patterns: Sequence[str], minimum_share: float
) -> tuple[_Fit, ...]:
    """Return the families with the most of the names.

    If the widths match none of these, all families with enough of the names are equally likely.
    """
    _, outs, ins = zip(*modules, strict=True)
    counts, shapes = Counter(patterns), dict[str, set[tuple[int | None, int | None]]]()
    for pattern, out_features, in_features in dict.fromkeys(zip(patterns, outs, ins, strict=True)):
        shapes.setdefault(pattern, set()).add((out_features, in_features))
    total = len(modules)
    found = _matching_layouts(counts, minimum_share * total)
    enough = [
        (matched, _Fit(family, layout, f"{matched} of {total} module names match", agreeing_sizes(family, shapes)))
        for matched, family, layout in found.values()
    ]
    most = max((matched for matched, _ in enough), default=0)
    best = tuple(fit for matched, fit in enough if matched == most)
    if all(fit.sizes == () for fit in best):
        best = tuple(fit for matched, fit in enough if matched >= _SHARE_OF_ANOTHER_SIZE * total)
    return best


def _fits_of_encoders(encoders: Sequence[TextEncoder]) -> tuple[_Fit, ...]:
    """Return the families that have all text encoders of a file without any layer of the model itself."""
    if not encoders:
        return ()
    share = f"{listed([str(encoder) for encoder in encoders])} and no layer of the model: its names may be from"
    return tuple(_Fit(family, family.layouts[0], share) for family in every() if _has_all(family, encoders))


# What a piece of evidence says of a family: True for it, False against it, None where it says nothing.
_Says = Callable[[_Fit], bool | None]


def _shown(
    paths: Sequence[str], used: Mapping[str, set[int]], encoders: Sequence[TextEncoder], prefixes: Collection[str]
) -> Iterator[tuple[str, _Says]]:
    """Yield the evidence of the tensors on families with equally matching names, strongest first."""
    yield "underscored names rule out", lambda fit: has_underscores(fit.layout, prefixes)
    # A family without any published size may be as wide as it likes.
    yield "the widths rule out", lambda fit: None if fit.sizes is None and fit.architecture.sizes else fit.sizes != ()
    if encoders:
        yield "the text encoders rule out", lambda fit: _has_all(fit.architecture, encoders)
    yield "layers that it does not have rule out", lambda fit: not has_missing(fit.layout, paths)
    # How many blocks there are is known of the published sizes alone.
    yield "the block indices rule out", lambda fit: None if fit.sizes == () else holds(fit.layout, used)
    yield "the block count rules out", lambda fit: None if fit.sizes == () else _is_full(fit, used)


def _is_full(fit: _Fit, used: Mapping[str, set[int]]) -> bool | None:
    """Return True if every block is used; None if smaller sizes of the family have fewer, or none are known."""
    if fills(fit.layout, used):
        return True
    has_smaller = len({size.name for size in fit.architecture.sizes}) > 1
    return None if has_smaller or not fit.layout.blocks else False


def _stated_families(
    metadata: Mapping[str, str], named: Mapping[str, str], trained: Sequence[str], prefixes: Collection[str]
) -> Iterator[tuple[str, _Says]]:
    """Yield the evidence of the metadata and of the way in which names are written, strongest first."""
    yield "the metadata rules out", lambda fit: fit.architecture.name in named
    yield "ss_v2 rules out", lambda fit: agrees_with_v2(fit.architecture.name, metadata)
    yield f"{MODULE_KEY} rules out", lambda fit: fit.architecture.name in trained
    if metadata.get(ONETRAINER_KEY):
        yield "OneTrainer does not train", lambda fit: fit.architecture.name in OF_ONETRAINER
    if base := base_of(metadata):
        yield f"{BASE_KEY} rules out", lambda fit: base.startswith(fit.architecture.base_names)
    yield f"the prefix {listed(sorted(prefixes))} rules out", lambda fit: written_with(fit.layout, prefixes)


def _denied(fit: _Fit, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield the metadata entries that exclude the family of `fit`."""
    family = fit.architecture.name
    for other, value in named_by(metadata).items():
        if other != family:
            yield f"the metadata says {value!r}"
    if family not in (trained := trained_by(metadata)) and trained:
        yield f"{MODULE_KEY} is {metadata[MODULE_KEY]!r}"


def _has_all(architecture: Architecture, encoders: Iterable[TextEncoder]) -> bool | None:
    """Return True if all of these belong to the family, or None if its text encoders are not known."""
    own = architecture.text_encoders
    return all(has(own, encoder) for encoder in encoders) if own else None


def _narrowed(left: tuple[_Fit, ...], says: _Says, cause: str, reasons: list[str]) -> tuple[_Fit, ...]:
    """Return the families that the evidence does not exclude, and note the excluded ones.

    Evidence that speaks for none of the families is about something else and decides nothing.
    """
    said = [(fit, says(fit)) for fit in left]
    gone = [fit.architecture.title for fit, answer in said if answer is False]
    if not gone or not any(answer for _, answer in said):
        return left
    reasons.append(f"{cause} {listed(gone)}")
    return tuple(fit for fit, answer in said if answer is not False)


def _own_path(one: Detection, found: Sequence[Detection]) -> str | None:
    """Return a path of the candidate's layout that no other candidate's layout has, in the blocks if possible."""
    others = {path for other in found if other is not one for path in other.layout.paths}
    own = [path for path in one.layout.paths if path not in others]
    return next((path for path in own if "{i}" in path), own[0] if own else None)


def _telling_path(found: Sequence[Detection]) -> str | None:
    """Return the first path in all layouts with a different width in each family."""
    for path in found[0].layout.paths:
        widths = [{size[2:] for size in one.architecture.sizes if size.path == path} for one in found]
        if all(widths) and len(set().union(*widths)) == sum(map(len, widths)):
            return path
    return None


def _size_name(fit: _Fit) -> str | None:
    return fit.sizes[0].name if fit.sizes and len(fit.sizes) == 1 else None


def _sentence(fit: _Fit, reasons: Sequence[str], denied: Iterable[str]) -> str:
    """Return the evidence for one family, in one sentence."""
    parts = [f"{fit.share} the {fit.layout.name} layout of {fit.architecture.title}", *reasons]
    name = _size_name(fit)
    if fit.sizes and name is not None:
        width = fit.sizes[0].in_features or fit.sizes[0].out_features
        parts.append(f"width {width} is the {name} model")
    elif fit.sizes == ():
        parts.append("the widths match no published size")
    parts += [f"{said}, but the names do not agree" for said in denied]
    return "; ".join(parts)
