"""Weighs what a weight of the merged model carries: its shares, and where these explain too little, what does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.change import Link, settled
from lora_inspect.maths.tensors import RowBlocks
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.merging.fold_chain import Fold, LinkReader, no_numbers_of_a_change
from lora_inspect.reading.base.base_codecs import CodedWeight
from lora_inspect.verifying.alternatives import (
    Alternative,
    alternatives,
    at_other_multipliers,
    rescaled,
    rounded_norms,
)
from lora_inspect.verifying.models import Model
from lora_inspect.verifying.rows import InRows, in_rows
from lora_inspect.verifying.shares import Shares, shares_in
from lora_inspect.verifying.stored_weight import StoredWeight
from lora_inspect.verifying.sums import Sums, sums_of
from lora_inspect.verifying.terms import Term, are_across, idle_terms_of, terms_of

# A block of rows of which as many copies as a weight needs stay in the second-level cache: 1 MB in float32.
BLOCK_ELEMENTS = 1 << 18
# After as many weights that shares do not explain, only what explained one of them is tried on.
_TRIED_ON_ALL = 8
# How often a multiplier is corrected by the share that is found with it.
_STEPS = 5


@dataclass(frozen=True, slots=True)
class Weighed:
    """What was found in one weight.

    `shares` are those of the `terms`, `rows` are where they differ by rows. `instead` is what explains the weight where
    neither does, with the share that it has. Where a program `rounded` it, the shares are those of what it rounds.
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
        """Whether what was found is rounding, shares and rows."""
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
        """What of its `folds` is in a weight of the base.

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
        """What explains what was found: one that needs no share but 1 before all others."""
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
        """What multipliers explain it, where a change is not in proportion to them, or what comes after it is not."""
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
            raise LoraInspectError(
                f"{fold.adapter.checkpoint.path}: folding {fold.contribution.module.key} into {info.name} gives "
                "numbers that are not finite or too large to weigh; lower the multiplier, or repair the file that "
                "holds such numbers."
            )
        return sums

    def _stored(self, model: Model, name: str, shape: tuple[int, ...], blocks: RowBlocks) -> StoredWeight:
        coded = model.weight(model.tensors[name])
        info = coded.info._replace(shape=shape)
        return StoredWeight(info, coded._replace(info=info), blocks)
