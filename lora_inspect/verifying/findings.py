"""The findings on a merged model, as sentences.

They come from the reported shares of each adapter, by kind, and from tensors that no adapter changes and that differ in
more than their element type.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.hashes import are_same_bytes
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.share import ALIKE, NO_CHANGE, NOT_FINITE, REASONS
from lora_inspect.maths.tensors import RowBlocks
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.reading.base.base_codecs import CodedWeight
from lora_inspect.sentences import Result, listed, some
from lora_inspect.verifying.causes import fitting
from lora_inspect.verifying.measure import PartShare, Weighed
from lora_inspect.verifying.models import Model
from lora_inspect.verifying.shares import TOLERANCE, Shares, StoredRows, StoredWeight

RIGHT, MISSING, DOUBLED, OPPOSITE, SCALED = "right", "missing", "doubled", "opposite", "scaled"
# A share so near to 0 is none, and one so near to 2 is twice the change.
NONE = 2 * TOLERANCE


class Unit(NamedTuple):
    """A share that is told: of an adapter in a weight, or of one of its modules on some rows of that."""

    label: str
    weight: str
    found: PartShare

    @property
    def tolerance(self) -> float:
        """The largest distance of the share from 1 that is right."""
        return max(TOLERANCE, self.found.noise)

    @property
    def share(self) -> float:
        """The share."""
        return self.found.share or 0.0

    @property
    def folds(self) -> Sequence[Fold]:
        """The folds of this weight."""
        return self.found.part.folds

    @property
    def kind(self) -> str:
        """The kind of the share."""
        return next(kind for kind, fits in _KINDS if fits(self))


_KINDS: tuple[tuple[str, Callable[[Unit], bool]], ...] = (
    (RIGHT, lambda unit: abs(unit.share - 1) <= unit.tolerance),
    (MISSING, lambda unit: abs(unit.share) <= max(NONE, unit.tolerance)),
    (DOUBLED, lambda unit: abs(unit.share - 2) <= max(NONE, unit.tolerance)),
    (OPPOSITE, lambda unit: unit.share < 0),
    (SCALED, lambda unit: True),
)


@dataclass(frozen=True, slots=True)
class AdapterShares:
    """The units of one adapter, and why shares of it are not told, by weight.

    `otherwise` are the weights that have another change of it, or have it in some rows alone.
    """

    adapter: str
    units: list[Unit] = field(default_factory=list)
    untold: dict[str, str] = field(default_factory=dict)
    otherwise: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Return True if every reported share is right."""
        return not self.otherwise and all(unit.kind == RIGHT for unit in self.units)

    def of(self, kind: str) -> list[Unit]:
        """The units of one kind."""
        return [unit for unit in self.units if unit.kind == kind]


def adapter_shares(weights: Sequence[Weighed], adapters: Sequence[str]) -> list[AdapterShares]:
    """Return the shares of each adapter, without weights that have another change or lack it in some rows."""
    found = {adapter: AdapterShares(adapter) for adapter in adapters}
    for weight in weights:
        for number, term in enumerate(weight.terms):
            own = found[term.adapter]
            if why := weight.shares.why[number]:
                own.untold[weight.name] = why
            if weight.instead or weight.rows.missing[number]:
                own.otherwise.append(weight.name)
                continue
            parts = weight.rows.parts[number]
            for part in parts:
                if part.share is not None:
                    label = weight.name if len(parts) == 1 else f"{weight.name} [{part.part.module}]"
                    own.units.append(Unit(label, weight.name, part))
    return list(found.values())


@dataclass(frozen=True, slots=True, repr=False)
class VerifyFinding(Result):
    """One thing that is wrong, or a note: a `code` for programs, a message, the modules, the adapter if it is one's."""

    code: str
    message: str
    modules: tuple[str, ...] = ()
    adapter: str | None = None
    is_error: bool = True


SWAPPED = VerifyFinding("swapped", "the model named as BASE carries the adapters: are MERGED and BASE swapped?")


def about_shares(told: Sequence[AdapterShares], total: Shares) -> Iterator[VerifyFinding]:
    """Yield findings about shares, by adapter; `total` are the shares over all weights, in the same order."""
    for number, one in enumerate(told):
        if units := one.of(MISSING):
            yield VerifyFinding(MISSING, _says_missing(one, units), _labels(units), one.adapter)
        for kind in (DOUBLED, OPPOSITE, SCALED):
            if units := one.of(kind):
                yield VerifyFinding(kind, _says_scaled(one, units), _labels(units), one.adapter)
        # What one adapter lacks in some weights moves the shares of others over all of them.
        are_right = all(other.is_right for other in told)
        if are_right and not total.why[number] and abs(total.values[number] - 1) > total.tolerance(number):
            share = f"{total.values[number]:.3g} (± {total.tolerance(number):.2g})"
            yield VerifyFinding(
                SCALED, f"all modules together have {share} of {one.adapter}", _labels(one.units), one.adapter
            )
        yield from _untold(one)


def equal_adapter_findings(weights: Sequence[Weighed]) -> Iterator[VerifyFinding]:
    """Yield findings about adapters with equal changes: only their sum can be measured."""
    wrong = {
        weight.name: weight.shares.estimate.together
        for weight in weights
        if ALIKE in weight.shares.why and not weight.instead and weight.shares.estimate.together is not None
        if abs(weight.shares.estimate.together - 1) > weight.shares.tolerance_together
    }
    if wrong:
        says = f"{_modules(wrong)} have {_span(list(wrong.values()))} of the joint change of adapters that are alike"
        yield VerifyFinding(SCALED, says, tuple(wrong))


def about_weights(weights: Sequence[Weighed]) -> Iterator[VerifyFinding]:
    """Yield findings that shares do not cover: missing rows, another change, and unexplained differences."""
    for adapter in dict.fromkeys(term.adapter for weight in weights for term in weight.terms):
        lacking = {
            weight.name: rows
            for weight in weights
            for term, rows in zip(weight.terms, weight.rows.missing, strict=True)
            if term.adapter == adapter and rows
        }
        if lacking:
            first, ranges = next(iter(lacking.items()))
            spans = some([f"{start} to {stop - 1}" for start, stop in ranges], 3)
            lack = "lacks" if len(lacking) == 1 else "lack"
            says = f"{_modules(lacking)} {lack} a part of {adapter}: rows {spans} of {first} have nothing of it"
            yield VerifyFinding("rows-missing", says, tuple(lacking), adapter)
    instead: dict[tuple[str, str, str], dict[str, float]] = {}
    for weight in weights:
        if weight.instead:
            other, share = weight.instead
            instead.setdefault((other.code, other.adapter, other.says), {})[weight.name] = share
    for (code, adapter, says), found in instead.items():
        shares = list(found.values())
        of_it = "" if all(abs(share - 1) <= NONE for share in shares) else f", {_span(shares)} of it"
        yield VerifyFinding(code, f"{adapter} {says}: {_modules(found)}{of_it}", tuple(found), adapter)
    rounded: dict[tuple[str, str, str], list[str]] = {}
    for weight in weights:
        if weight.rounded:
            one = weight.rounded
            rounded.setdefault((one.code, one.adapter, one.says), []).append(weight.name)
    for (code, adapter, says), own in rounded.items():
        yield VerifyFinding(code, f"{adapter} {says}: {_modules(own)}", tuple(own), adapter, is_error=False)
    if left := [weight for weight in weights if not weight.is_explained and not weight.instead]:
        sizes = [size for weight in left if (size := weight.shares.residual) is not None]
        most = f", up to {max(sizes):.2g} of the size of the change" if sizes else ""
        names = tuple(weight.name for weight in left)
        yield VerifyFinding("residual", f"another change is in {_modules(names)}{most}", names)


def about_models(
    unexpected: Mapping[str, str], untouched: int, absent: Sequence[str], extra: Sequence[str], broken: Sequence[str]
) -> Iterator[VerifyFinding]:
    """Yield findings about tensors that do not depend on the adapters."""
    if broken:
        yield VerifyFinding("not-finite", f"numbers that are not finite in {_modules(broken)}", tuple(broken))
    if unexpected:
        first, what = next(iter(unexpected.items()))
        says = f"{len(unexpected)} of {untouched} tensors that no adapter changes differ: {first} ({what})"
        hint = "; is it the base of this merge?" if 2 * len(unexpected) > untouched else ""
        yield VerifyFinding("unexpected-change", says + hint, tuple(unexpected))
    if absent:
        yield VerifyFinding("absent", f"tensors of the base are missing: {some(absent, 3)}", tuple(absent))
    if extra:
        says = f"tensors that the base lacks: {some(extra, 3)}"
        yield VerifyFinding("extra", says, tuple(extra), is_error=False)


def _says_missing(one: AdapterShares, units: Sequence[Unit]) -> str:
    if len(units) == len(one.units):
        return f"nothing of {one.adapter} is in MERGED ({_modules(units)})"
    return f"{len(units)} of {_modules(one.units)} {'has' if len(units) == 1 else 'have'} nothing of {one.adapter}"


def _says_scaled(one: AdapterShares, units: Sequence[Unit]) -> str:
    causes = fitting([(unit.folds, unit.share, unit.tolerance) for unit in units])
    symbols = "".join(f" = {symbol}" for symbol in dict.fromkeys(cause.symbol for cause in causes) if symbol)
    why = f": {listed([cause.says for cause in causes], 'or')}" if causes else ""
    which = _modules(units) if len(units) == len(one.units) else f"{len(units)} of {_modules(one.units)}"
    has = "has" if len(units) == 1 else "have"
    return f"{which} {has} {_span([unit.share for unit in units])}{symbols} of {one.adapter}{why}"


def _untold(one: AdapterShares) -> Iterator[VerifyFinding]:
    """A note where some shares are open, an error where all are; modules without a change are none."""
    open_ = {name: why for name, why in one.untold.items() if why not in (NO_CHANGE, NOT_FINITE)}
    if not open_:
        return
    reasons = listed([REASONS[why] for why in dict.fromkeys(open_.values())])
    alone = not one.units and set(open_.values()) != {ALIKE}
    says = f"cannot tell how much of {one.adapter} is in {_modules(open_)}: {reasons}"
    yield VerifyFinding("undetermined", says, tuple(open_), one.adapter, is_error=alone)


def _labels(units: Sequence[Unit]) -> tuple[str, ...]:
    return tuple(unit.label for unit in units)


def _modules(names: Collection[object]) -> str:
    return f"{len(names)} module{'' if len(names) == 1 else 's'}"


def _span(shares: Sequence[float]) -> str:
    least, most = min(shares), max(shares)
    if most - least <= TOLERANCE * max(1.0, abs(most)):
        return f"{sum(shares) / len(shares):.3g}"
    return f"{least:.3g} to {most:.3g}"


def difference(
    base: Model, info: TensorInfo, merged: Model, other: TensorInfo, blocks: tuple[RowBlocks, RowBlocks]
) -> str | None:
    """Describe the difference of two tensors, or return None.

    Tensors of one type differ where any number does. Tensors of two types, or codes with scales, agree where no number
    differs by more than the spacing of both types. A cast in any direction of rounding does that.
    """
    if info.shape != other.shape:
        return f"shape {list(other.shape)} instead of {list(info.shape)}"
    before, after = base.coded(info), merged.coded(other)
    is_scaled = any(one is not None and one.is_decoded for one in (before, after))
    if info.dtype == other.dtype and not is_scaled and are_same_bytes(info, other, [(0, 0, info.nbytes)]):
        return None
    if before is None or after is None:
        return "other codes" if info.dtype == other.dtype else f"{other.dtype} instead of {info.dtype}"
    return _numbers(before, after, info.dtype == other.dtype and not is_scaled, blocks)


def _numbers(before: CodedWeight, after: CodedWeight, exact: bool, blocks: tuple[RowBlocks, RowBlocks]) -> str | None:
    first, second = (StoredWeight(one.info, one, own) for one, own in zip((before, after), blocks, strict=True))
    moved, size, count = 0.0, 0.0, 0
    for rows, others in zip(first.rows(), second.rows(), strict=True):
        differ = _differ(rows, others, exact)
        apart = (others.values.double() - rows.values.double())[differ]
        count += len(apart)
        moved += float(apart.square().sum())
        size += float(rows.values.double().square().sum())
    if not count:
        return None
    by = f", by {sqrt(moved / size):.2g} of its size" if 0 < size < float("inf") and moved < float("inf") else ""
    return f"{count:,} of {before.info.numel:,} numbers{by}"


def _differ(rows: StoredRows, others: StoredRows, exact: bool) -> torch.Tensor:
    """Mask the places that differ by more than a cast; non-finite numbers agree if they are equal."""
    one, other = rows.values.double(), others.values.double()
    differ = (one != other) & ~(one.isnan() & other.isnan())
    if exact or not differ.any():
        return differ
    return differ & ~((one - other).abs() <= rows.units().double() + others.units().double())
