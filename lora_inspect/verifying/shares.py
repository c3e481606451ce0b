"""The shares of adapters in one weight of a model of unknown making, from sums over the entries of each row.

The changes of each adapter come with their modules. A weight comes as blocks of rows, with the effect of its element
type on numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import lcm, sqrt

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import GRIDS, PLAIN_FLOATS, ROUNDING
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.change import Link
from lora_inspect.maths.rounding import grid_of, rounded, spacing
from lora_inspect.maths.share import NOT_FINITE, SIGMAS, Estimate, Share, inverse, unknown_rounding
from lora_inspect.maths.tensors import RowBlocks, first_non_finite
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.reading.base.base_codecs import CodedWeight

Ranges = tuple[tuple[int, int], ...]


class ModuleRows(NamedTuple):
    """The change of a module in a weight: its `rows` (start, stop), None for all of them."""

    module: str
    folds: tuple[Fold, ...]
    rows: Ranges = ()


class Term(NamedTuple):
    """The folds of one adapter into one weight, in their order."""

    adapter: str
    folds: tuple[Fold, ...]

    @property
    def parts(self) -> list[ModuleRows]:
        """The modules on rows of their own, or all together as one where they share rows."""
        found: dict[tuple[str, Ranges], list[Fold]] = {}
        for fold in self.folds:
            found.setdefault((fold.contribution.module.key, _rows(fold)), []).append(fold)
        parts = [ModuleRows(module, tuple(folds), rows) for (module, rows), folds in found.items()]
        ranges = sorted(one for part in parts for one in part.rows)
        apart = all(before[1] <= after[0] for before, after in pairwise(ranges))
        if len(parts) > 1 and apart and all(part.rows for part in parts):
            return parts
        return [ModuleRows(parts[0].module, self.folds)]


def terms_of(folds: Iterable[Fold]) -> list[Term]:
    """Return the folds with a multiplier other than 0, in the order of the adapters."""
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
    """Return True if the rows of modules are columns of the stored weight."""
    return all(fold.placed.place.transposed and not fold.placed.place.block for fold in folds)


def _rows(fold: Fold) -> Ranges:
    place = fold.placed.place
    if place.block and (place.transposed or not place.runs):
        first, count = place.block
        return ((first, first + count),)
    first = place.block[0] if place.block else 0
    return tuple((first + start, first + stop) for start, stop, _ in place.runs.each()) if place.runs else ()


# A merge in float32 rounds sums, norms and products on its way; as many roundings of the working type are its own.
_STEPS = 4


class StoredRows(NamedTuple):
    """Rows of a stored weight; `first` is the number of the first one.

    `values` (n, columns) are in the working type and `dtype` is the stored type. `scale` (n, columns) multiplies the
    codes; it is None for plain numbers. Numbers without a grid of their own, such as those of four bits, count as
    numbers of the working type.
    """

    first: int
    values: Tensor
    dtype: str
    scale: Tensor | None = None

    def in_coarsest_type(self) -> "StoredRows":
        """Return the rows in the coarsest type that represents them; they must be finite."""
        return self._replace(dtype=grid_of(self.values, self.dtype)) if self.dtype in PLAIN_FLOATS else self

    def every(self, step: int) -> "StoredRows":
        """Each `step`th of the rows."""
        return self._replace(
            values=self.values[::step].contiguous(), scale=None if self.scale is None else self.scale[::step]
        )

    def units(self) -> Tensor:
        """The distance between neighbouring numbers at each value."""
        if self.scale is None:
            return spacing(self.values, self.dtype)
        return spacing(self.values / self.scale, self.dtype) * self.scale.abs()

    def noise(self) -> Tensor:
        """The variance that rounding to the type gives each entry, with that of the arithmetic before."""
        working = "F64" if self.values.dtype == torch.float64 else "F32"
        own, arithmetic = self.units(), spacing(self.values, working)
        return own.square_().add_(arithmetic.square_(), alpha=_STEPS).mul_(ROUNDING)

    def rounded(self, wanted: Tensor) -> Tensor:
        """Round other numbers for these rows as their type and scale do."""
        if self.scale is None:
            return rounded(wanted, self.dtype)
        return rounded(wanted / self.scale, self.dtype) * self.scale


class StoredWeight(NamedTuple):
    """A weight that `blocks` reads in blocks of rows; `coded` is its codec, in the shape as read."""

    info: TensorInfo
    coded: CodedWeight
    blocks: RowBlocks

    def rows(self, together: int = 1) -> Iterator[StoredRows]:
        """All rows in blocks of a multiple of `together`, 0 for all at once; the memory is used again."""
        decode = self.coded.decode
        dtype = self.info.dtype if self.info.dtype in GRIDS else "F32"
        for first, values in self.blocks.read(self.info, together, decode):
            scale = None
            if decode and self.coded.is_decoded and dtype == self.info.dtype:
                scale = torch.ones_like(values)
                decode.rows(scale, first, scale)
            yield StoredRows(first, values, dtype, scale)

    def read(self, together: int = 1) -> Iterator[tuple[int, Tensor]]:
        """(first row, values) of the same blocks."""
        return ((rows.first, rows.values) for rows in self.rows(together))


# Of a weight of many rows, rounding is looked up in each eighth: it is a third of all that is to be computed.
_MANY, _EVERY = 256, 8


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums for each of n rows, in float64, with x = merged - base and d_t the change of term t of k.

    `found` (n,) is the sum of x², `along` (n, k) of x · d_t, `gram` (n, k, k) of d_t · d_s. `noise` (n,) is the sum of
    the variances of the entries' rounding, and `base_noise` (n,) that of the base, if its stored type is coarser. With
    e the rounding of an exact merge, `lost` (n, k) is the sum of e · d_t and `lost_squares` (n,) of e². `entries` is
    the length of a row. `broken` counts the entries that are not finite.
    """

    found: Tensor
    along: Tensor
    gram: Tensor
    noise: Tensor
    base_noise: Tensor
    lost: Tensor
    lost_squares: Tensor
    entries: int
    broken: int = 0


def sums_of(terms: Sequence[Sequence[Link]], base: StoredWeight, merged: StoredWeight, across: bool = False) -> Sums:
    """The sums of one weight, with the settled links of each term.

    `across` sums over columns in the place of rows, for weights that are stored as (in, out).
    """
    together = lcm(1, *(change.together for links in terms for change, _ in links))
    parts: list[list[Tensor]] = []
    broken, entries = 0, 0
    step = _EVERY if base.info.shape and base.info.shape[0] >= _MANY else 1
    for before, after in zip(base.rows(together), merged.rows(together), strict=True):
        if first_non_finite(after.values) is not None:
            broken += int((~after.values.isfinite()).sum())
            continue
        fields = list(_of_block(terms, before, after, 0 if across else 1, step))
        rows, columns = before.values.shape
        entries = entries + rows if across else columns
        if across and parts:
            parts = [[old.add_(new) for old, new in zip(parts[0], fields, strict=True)]]
        else:
            parts.append(fields)
    if broken or not parts:
        return _nothing(len(terms), broken)
    found, noise, base_noise, lost_squares, along, lost, gram = (torch.cat(of) for of in zip(*parts, strict=True))
    return Sums(found, along, gram, noise, base_noise, lost, lost_squares, entries)


def _of_block(
    terms: Sequence[Sequence[Link]], before: StoredRows, after: StoredRows, axis: int, step: int
) -> Iterator[Tensor]:
    """Yield the fields of `Sums`, vectors first, for one block; the block of the base is overwritten.

    The effect of rounding is sampled in each `step`th row.
    """
    rows = before.values
    after = after._replace(values=after.values.to(rows.dtype)).in_coarsest_type()
    seen = after.every(step)
    x = after.values - rows
    is_coarser = GRIDS[before.dtype].bits < GRIDS[after.dtype].bits
    base_noise = before.every(step).units().square_().mul_(ROUNDING) if is_coarser else torch.zeros_like(seen.values)
    changes = [_folded(links, rows, before.first) for links in terms]
    lost = seen.rounded(rows[::step]).sub_(rows[::step])

    def total(values: Tensor) -> Tensor:
        return values.sum(axis).double()

    def estimated(values: Tensor) -> Tensor:
        if axis == 0:
            return total(values) * (len(rows) / len(values))
        return total(values).repeat_interleave(step)[: len(rows)]

    yield total(x * x)
    yield estimated(seen.noise())
    yield estimated(base_noise)
    yield estimated(lost * lost)
    count = x.shape[1 - axis]
    along, lost_along = (x.new_empty(count, len(changes), dtype=torch.float64) for _ in range(2))
    gram = x.new_empty(count, len(changes), len(changes), dtype=torch.float64)
    for t, d in enumerate(changes):
        along[:, t], lost_along[:, t] = total(x * d), estimated(lost * d[::step])
        for s in range(t + 1):
            gram[:, t, s] = gram[:, s, t] = total(d * changes[s])
    yield along
    yield lost_along
    yield gram


def _folded(links: Sequence[Link], rows: Tensor, first: int) -> Tensor:
    """Fold links into the rows and return the change."""
    before = rows.clone()
    for change, multiplier in links:
        change.fold(rows, first, multiplier)
    return torch.sub(rows, before, out=before)


def _nothing(terms: int, broken: int) -> Sums:
    shapes = (0,), (0, terms), (0, terms, terms)
    vector, matrix, cube = (torch.zeros(shape, dtype=torch.float64, device="cpu") for shape in shapes)
    return Sums(vector, matrix, cube, vector, vector, matrix, vector, 0, broken)


# A share may be so far from 1 by what programs round beside the weight: factors, products and scales in bfloat16 are
# off by 2^-9 each.
TOLERANCE = 0.01
# What no change explains may be so much of what was expected, for the same reasons, and so many times what rounding
# the weight once leaves: a program that works in the type of the weight rounds the change and the sum, and of DoRA the
# magnitude, the norm, their quotient and the product.
UNEXPLAINED, ROUNDINGS = 0.02, 8.0


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares in one weight, or in all, by term, and the `estimate` that they come from.

    `unexplained`, `rounding`, `allowed` and `expected` are squares: x without all shares, the rounding in it, the
    largest rounding, and the sum of all changes. `is_finite` is True if the weight is finite.
    """

    estimate: Estimate
    unexplained: float
    rounding: float
    allowed: float
    expected: float
    is_finite: bool = True
    found: tuple[Share, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = self.estimate.shares()
        if not self.is_finite:
            found = [share._replace(why=NOT_FINITE) for share in found]
        object.__setattr__(self, "found", tuple(found))

    @property
    def values(self) -> list[float]:
        """The shares, told or not."""
        return [share.value for share in self.found]

    @property
    def noise(self) -> list[float]:
        """The ± that is stated with each."""
        return [share.error for share in self.found]

    @property
    def why(self) -> list[str]:
        """The reason why each is not told, empty where it is."""
        return [share.why for share in self.found]

    @property
    def is_explained(self) -> bool:
        """Return True if only rounding is left of x."""
        return self.unexplained <= self.allowed

    @property
    def off(self) -> float:
        """The excess of the worst reported share over its tolerance; 0 where all are right."""
        told = (term for term, share in enumerate(self.found) if not share.why)
        beyond = (abs(self.found[term].value - 1) - self.tolerance(term) for term in told)
        return max((0.0, *beyond))

    @property
    def residual(self) -> float | None:
        """The rest of x beyond rounding, relative to the expected change; None where no change was expected."""
        return residual(self.unexplained, self.rounding, self.expected)

    @property
    def tolerance_together(self) -> float:
        """The largest distance of the share of all changes from 1 that is right."""
        if self.expected <= 0:
            return TOLERANCE
        scatter, lost, *_ = self.estimate.rounding
        error = sqrt(max(0.0, float(scatter.sum()))) / self.expected
        return max(TOLERANCE, abs(float(lost.sum())) / self.expected + SIGMAS * error)

    def tolerance(self, term: int) -> float:
        """Return the largest distance of a term's share from 1 that is right."""
        return max(TOLERANCE, self.found[term].error)


def residual(unexplained: float, rounding: float, expected: float) -> float | None:
    """Return the size of the unexplained rest without rounding, relative to the expected size.

    All three arguments are squares.
    """
    return sqrt(max(0.0, unexplained - rounding) / expected) if expected > 0 else None


def shares_in(sums: Sums) -> Shares:
    """The shares in one weight."""
    gram, along = sums.gram.sum(0), sums.along.sum(0)
    values = inverse(gram) @ along
    unexplained = left_over(sums, values.expand_as(sums.along))
    plain, base = float(sums.noise.sum()), float(sums.base_noise.sum())
    rounding = max(plain, float(sums.lost_squares.sum()))
    expected = float(gram.sum())
    allowed = ROUNDINGS * rounding + base + UNEXPLAINED**2 * expected
    level = min(max(unexplained / plain, 1.0), (ROUNDINGS * rounding + base) / plain) if plain else 1.0
    scores = sums.along - sums.gram @ values if unexplained <= allowed else None
    unknown = unknown_rounding(sums.gram, sums.noise, sums.entries, level, sums.lost.sum(0), scores)
    return Shares(Estimate(along, gram, unknown), unexplained, rounding, allowed, expected, not sums.broken)


def left_over(sums: Sums, values: Tensor) -> float:
    """Return the square of the rest of x where each row has its own shares, `values` (n, k)."""
    explained = (sums.gram @ values[:, :, None]).squeeze(2) - 2 * sums.along
    return max(0.0, float((sums.found + (explained * values).sum(1)).sum()))


def pooled(parts: Sequence[tuple[Shares, Sequence[int]]], terms: int) -> Shares:
    """Pool the shares over several weights, each with the numbers of its own `terms`.

    Shares that a weight does not report do not count there.
    """
    whole = Estimate.nothing(terms)
    for shares, numbers in parts:
        told = [term for term, share in enumerate(shares.found) if not share.why]
        values = torch.tensor([shares.found[term].value for term in told], dtype=torch.float64, device="cpu")
        whole.add(shares.estimate.only(told, values), [numbers[term] for term in told])
    return Shares(
        estimate=whole,
        unexplained=sum(shares.unexplained for shares, _ in parts),
        rounding=sum(shares.rounding for shares, _ in parts),
        allowed=sum(shares.allowed for shares, _ in parts),
        expected=sum(shares.expected for shares, _ in parts),
    )
