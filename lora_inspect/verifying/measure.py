"""The measurement of a merged weight: its shares, and other causes where these explain too little.

A change may be in some places of a weight and not in others: modules have rows of their own, and some rows get nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.change import Link, settled
from lora_inspect.maths.share import SIGMAS
from lora_inspect.maths.tensors import RowBlocks
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.merging.fold_chain import Fold, LinkReader, no_numbers_of_a_change
from lora_inspect.reading.base.base_codecs import CodedWeight
from lora_inspect.verifying.causes import Alternative, alternatives, at_other_multipliers, rescaled, rounded_norms
from lora_inspect.verifying.models import Model
from lora_inspect.verifying.shares import (
    ModuleRows,
    Ranges,
    Shares,
    StoredWeight,
    Sums,
    Term,
    are_across,
    idle_terms_of,
    left_over,
    shares_in,
    sums_of,
    terms_of,
)

# A row is one that lacks a change, or has it, where its share is so near to 0 or to 1.
_NEAR = 0.25
# Rows with less than this of the mean square of a change tell nothing.
_LITTLE = 1e-3


class PartShare(NamedTuple):
    """The share of a module on rows of its own, or of all that an adapter changes in a weight."""

    part: ModuleRows
    share: float | None
    noise: float
    square: float


class InRows(NamedTuple):
    """Shares of row ranges by term, rows that lack a term's change, and whether both explain the weight."""

    parts: list[list[PartShare]]
    missing: list[Ranges]
    is_explained: bool


def in_rows(terms: Sequence[Term], sums: Sums, shares: Shares) -> InRows:
    """Measure rows where the shares of whole weights do not explain the difference."""
    values = torch.tensor(shares.values, dtype=torch.float64, device="cpu").repeat(len(sums.found), 1)
    parts = [_parts(number, term.parts, sums, shares, values) for number, term in enumerate(terms)]
    missing: list[Ranges] = [() for _ in terms]
    explained = shares.is_explained or left_over(sums, values) <= shares.allowed
    if not explained:
        for number in range(len(terms)):
            missing[number] = _missing(number, sums, values)
        explained = any(missing) and left_over(sums, values) <= shares.allowed
    return InRows(parts, missing if explained else [() for _ in terms], explained)


def _parts(term: int, parts: Sequence[ModuleRows], sums: Sums, shares: Shares, values: Tensor) -> list[PartShare]:
    """The share of each part, which is entered into the `values` (n, k) of its rows."""
    if len(parts) == 1:
        told = None if shares.why[term] else shares.values[term]
        return [PartShare(parts[0], told, shares.noise[term], float(shares.estimate.gram[term, term]))]
    along = _along(term, sums, values)
    whole, found = float(shares.estimate.gram[term, term]), []
    for part in parts:
        rows = torch.cat([torch.arange(start, stop, dtype=torch.long, device="cpu") for start, stop in part.rows])
        square = float(sums.gram[rows, term, term].sum())
        share = float(along[rows].sum()) / square if square > 0 else 0.0
        values[rows, term] = share
        told = None if shares.why[term] or square <= 0 else share
        noise = shares.noise[term] * sqrt(whole / square) if square > 0 else 0.0
        found.append(PartShare(part, told, noise, square))
    return found


def _along(term: int, sums: Sums, values: Tensor) -> Tensor:
    """Return by row the product of the change with x minus the shares of the other terms."""
    others = (sums.gram[:, term] * values).sum(1) - sums.gram[:, term, term] * values[:, term]
    return sums.along[:, term] - others


def _missing(term: int, sums: Sums, values: Tensor) -> Ranges:
    """The rows that lack the change, where every row that tells has it or lacks it; entered into `values`."""
    if len(values) < 2:
        return ()
    exact = values.clone()
    exact[:, [other for other in range(values.shape[1]) if other != term]] = 1.0
    squares = sums.gram[:, term, term]
    noise = SIGMAS * (sums.noise / max(sums.entries, 1) / squares.clamp(min=1e-300)).sqrt()
    tells = (squares > _LITTLE * squares.mean()) & (noise < _NEAR)
    share = _along(term, sums, exact) / squares.clamp(min=1e-300)
    lacks, has = tells & (share.abs() < _NEAR), tells & ((share - 1).abs() < _NEAR)
    if not lacks.any() or not has.any() or not ((lacks | has) == tells).all():
        return ()
    values[:, term] = lacks.logical_not().double()
    return _ranges(tells.nonzero().flatten().tolist(), lacks.tolist())


def _ranges(rows: Sequence[int], lacks: Sequence[bool]) -> Ranges:
    """The rows that lack it, as (start, stop); rows that tell nothing belong to those around them."""
    found: list[tuple[int, int]] = []
    was = False
    for row in rows:
        if lacks[row]:
            found.append((found.pop()[0] if was else row, row + 1))
        was = lacks[row]
    return tuple(found)


# A block of rows of which as many copies as a weight needs stay in the second-level cache: 1 MB in float32.
BLOCK_ELEMENTS = 1 << 18
# After as many weights that shares do not explain, only what explained one of them is tried on.
_TRIED_ON_ALL = 8
# How often a multiplier is corrected by the share that is found with it.
_STEPS = 5


@dataclass(frozen=True, slots=True)
class Weighed:
    """The measurement of one weight.

    `shares` belong to the `terms`; `rows` list where they differ by rows. `instead` is an alternative that explains the
    weight where neither does, with its share. Where a program `rounded` a change, the shares are those of the rounded
    change.
    """

    name: str
    terms: tuple[Term, ...]
    idle: tuple[Term, ...]
    shares: Shares
    rows: InRows
    instead: tuple[Alternative, float] | None = None
    rounded: Alternative | None = None

    @property
    def is_explained(self) -> bool:
        """Return True if rounding, shares and rows explain the difference."""
        return self.shares.is_explained or self.rows.is_explained


@dataclass(slots=True)
class Weigher:
    """Weighs one weight after the other, reading both models a block of rows at a time.

    `decoded` are the weights that are codes in the base, by name, and `rule` is the rule for DoRA, None for the files'
    own.
    """

    merged: Model
    base: Model
    decoded: Mapping[str, CodedWeight]
    rule: str | None
    blocks: tuple[RowBlocks, RowBlocks] = field(
        default_factory=lambda: (RowBlocks(BLOCK_ELEMENTS), RowBlocks(BLOCK_ELEMENTS))
    )
    _factors: FactorReader = field(default_factory=FactorReader)
    _tried: int = 0
    _by: set[str] = field(default_factory=set)

    def weighed(self, info: TensorInfo, folds: Sequence[Fold]) -> Weighed:
        """Measure how much of each of the `folds` a weight of the base contains.

        Raises LoraInspectError where a change is not finite or cannot be computed.
        """
        terms, idle = tuple(terms_of(folds)), tuple(idle_terms_of(folds))
        sums = self._sums(info, terms, self.rule, folds)
        shares = shares_in(sums)
        rows = in_rows(terms, sums, shares)
        found = Weighed(info.name, terms, idle, shares, rows)
        if sums.broken or (found.is_explained and not shares.off):
            return found
        if rounded := self._rounded(info, terms):
            other = rounded.terms
            sums = self._sums(info, other, rounded.rule, folds)
            shares = shares_in(sums)
            return Weighed(info.name, terms, idle, shares, in_rows(other, sums, shares), rounded=rounded)
        if found.is_explained:
            return found
        return Weighed(info.name, terms, idle, shares, rows, self._instead(info, found))

    def _rounded(self, info: TensorInfo, terms: Sequence[Term]) -> Alternative | None:
        """The same change as a program rounds it, where all of that is there."""
        for one in rounded_norms(terms, self.rule):
            shares = self._shares(info, one.terms, one.rule)
            if shares.is_explained and not shares.off:
                return one
        return None

    def _instead(self, info: TensorInfo, found: Weighed) -> tuple[Alternative, float] | None:
        """Return the alternative that explains the difference; one with share 1 comes first."""
        fitting: list[tuple[float, Alternative, float]] = []
        self._tried += 1
        for one in alternatives(found.terms, found.idle, self.rule):
            if not self._is_tried(one.code):
                continue
            shares = self._shares(info, one.terms, one.rule)
            number = next(at for at, term in enumerate(one.terms) if term.adapter == one.adapter)
            if shares.is_explained and not shares.why[number]:
                fitting.append((shares.off, one, shares.values[number]))
                if shares.off <= 0:
                    break
        if not fitting or fitting[-1][0] > 0:
            fitting += self._at_other_multipliers(info, found)
        if not fitting:
            return None
        _, best, share = min(fitting, key=lambda one: one[0])
        self._by.add(best.code)
        return best, share

    def _is_tried(self, code: str) -> bool:
        return self._tried <= _TRIED_ON_ALL or code in self._by

    def _at_other_multipliers(self, info: TensorInfo, found: Weighed) -> Iterator[tuple[float, Alternative, float]]:
        """Yield multipliers that explain the difference where a change is not proportional to its multiplier."""
        if not any(fold.contribution.multiplies for term in found.terms for fold in term.folds):
            return
        for one in at_other_multipliers(found.terms, found.idle, self.rule):
            if not self._is_tried(one.code):
                continue
            terms, times = one.terms, [1.0 for _ in one.terms]
            for _ in range(_STEPS):
                shares = self._shares(info, terms, one.rule)
                times = [share * value for share, value in zip(times, shares.values, strict=True)]
                if shares.is_explained and shares.off <= 0:
                    numbers = [at for at, term in enumerate(terms) if term.adapter == one.adapter] or range(len(times))
                    number = max(numbers, key=lambda at: abs(times[at] - 1))
                    yield 0.0, one._replace(adapter=terms[number].adapter, terms=terms), times[number]
                    return
                other = None if any(shares.why) else rescaled(terms, shares.values)
                if other is None:
                    break
                terms = other

    def _shares(self, info: TensorInfo, terms: Sequence[Term], rule: str | None) -> Shares:
        return shares_in(self._sums(info, terms, rule, [fold for term in terms for fold in term.folds]))

    def _sums(self, info: TensorInfo, terms: Sequence[Term], rule: str | None, folds: Sequence[Fold]) -> Sums:
        # The parameter of all experts of a layer is changed as a matrix.
        shape = folds[0].placed.place.target.shape
        base, merged = (
            self._stored(model, info.name, shape, own)
            for model, own in zip((self.base, self.merged), self.blocks, strict=True)
        )
        reader = LinkReader(self.blocks[0], self._factors, self.decoded)
        try:
            links: list[list[Link]] = [
                [link for fold in term.folds for link in reader.links(fold, base.read, rule)] for term in terms
            ]
            done = iter(settled([link for own in links for link in own], base.read))
            sums = sums_of([[next(done) for _ in own] for own in links], base, merged, are_across(folds))
        except LinAlgError as error:
            raise no_numbers_of_a_change(info, folds[-1]) from error
        if not sums.gram.isfinite().all():
            fold = folds[-1]
            raise RefusedError(
                fold.adapter.checkpoint.path,
                f"folding {fold.contribution.module.key} into {info.name} gives numbers that are not finite or "
                "too large to measure",
                "lower the multiplier, or repair the file that holds such numbers",
            )
        return sums

    def _stored(self, model: Model, name: str, shape: tuple[int, ...], blocks: RowBlocks) -> StoredWeight:
        coded = model.weight(model.tensors[name])
        info = coded.info._replace(shape=shape)
        return StoredWeight(info, coded._replace(info=info), blocks)
