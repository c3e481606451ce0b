"""What is weighed in one weight: the changes of each adapter, and the modules that they come from."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.merging.fold_chain import Fold

Ranges = tuple[tuple[int, int], ...]


class Part(NamedTuple):
    """What a module changes in a weight: the `rows` (start, stop) of it, none for all of them."""

    module: str
    folds: tuple[Fold, ...]
    rows: Ranges = ()


class Term(NamedTuple):
    """The folds of one adapter into one weight, in their order."""

    adapter: str
    folds: tuple[Fold, ...]

    @property
    def parts(self) -> list[Part]:
        """The modules on rows of their own, or all together as one where they share rows."""
        found: dict[tuple[str, Ranges], list[Fold]] = {}
        for fold in self.folds:
            found.setdefault((fold.contribution.module.key, _rows(fold)), []).append(fold)
        parts = [Part(module, tuple(folds), rows) for (module, rows), folds in found.items()]
        ranges = sorted(one for part in parts for one in part.rows)
        apart = all(before[1] <= after[0] for before, after in pairwise(ranges))
        if len(parts) > 1 and apart and all(part.rows for part in parts):
            return parts
        return [Part(parts[0].module, self.folds)]


def terms_of(folds: Iterable[Fold]) -> list[Term]:
    """The folds whose multiplier is not 0, by adapter in the order in which they are named."""
    by_adapter: dict[str, list[Fold]] = {}
    for fold in folds:
        if fold.multiplier:
            by_adapter.setdefault(fold.adapter.checkpoint.path, []).append(fold)
    return [Term(adapter, tuple(own)) for adapter, own in by_adapter.items()]


def idle_terms_of(folds: Sequence[Fold]) -> list[Term]:
    """The adapters that are not to be there, as their multiplier is 0 for all that they change, at multiplier 1."""
    at_work = {term.adapter for term in terms_of(folds)}
    others = [replace(fold, multiplier=1.0) for fold in folds if fold.adapter.checkpoint.path not in at_work]
    return terms_of(others)


def are_across(folds: Sequence[Fold]) -> bool:
    """Whether the rows that modules speak of are the columns of the weight as it is stored."""
    return all(fold.placed.place.transposed and not fold.placed.place.block for fold in folds)


def _rows(fold: Fold) -> Ranges:
    place = fold.placed.place
    if place.block and (place.transposed or not place.runs):
        first, count = place.block
        return ((first, first + count),)
    first = place.block[0] if place.block else 0
    return tuple((first + start, first + stop) for start, stop, _ in place.runs.each()) if place.runs else ()
