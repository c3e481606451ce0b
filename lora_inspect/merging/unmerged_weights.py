"""The tensors of a model without its adapters: from the merged model itself, or from the base at hand.

A weight without its changes is a set of numbers of its type that the base can have had, a block of rows at a time. A
change is computed in float64 here. A merge in float32 is off by at most n · 2^-24 times the sum of the absolute values
of all terms, with n roundings on the way of each term. A merge in float64, and the computation here, is off by at most
n · 2^-53 times that sum. So this holds for any machine, version or order of sums that made the merged file. Near zero a
rounding is off by more than that, so any number that is not zero counts as a little larger.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm

import torch
from torch import Tensor

from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import are_same_bytes
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Writer
from lora_inspect.maths.change import Change
from lora_inspect.maths.rounding import preimages, rounding_interval
from lora_inspect.maths.tensors import TORCH_DTYPES, Cut, bytes_in, cut
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.merging.fold_chain import DOUBLE, SINGLE, Fold, recorded_type
from lora_inspect.merging.threads import Job, Worker
from lora_inspect.merging.working_crew import Tools, copying, run_in_order, working_crew
from lora_inspect.progress import Progress

# What adds sums of products of its factors: with their absolute values it gives the sum of the terms' own.
SUMS_OF_PRODUCTS = frozenset(
    (
        "adalora", "bdlora", "beft", "full", "full_bias", "full_modulation", "gralora", "loha", "lokr", "lokr_rows",
        "lora", "lora_bias", "lora_embedding", "lora_embedding_along_tokens", "mlx", "norm", "norm_bias", "shira",
        "vera",
    )
)  # fmt: skip
# How far a rounding of the merge, and one here, are off.
_UNIT = {SINGLE: 2.0**-24 + 2.0**-53, DOUBLE: 2.0**-52}
# Roundings of a term beside those of its sums: of the scale, of the factors with it, of the products, of the last sum.
_FEW = 8
# What that is. Times the unit of float32, its fourth power is no less than the least normal number of that: as many
# factors have the changes.
_LITTLE = 2.0**-25
# Every number of a block is there in float64 some times over, which all stays in the cache of one core.
BLOCK_ELEMENTS = 1 << 15


def is_plain(info: TensorInfo) -> bool:
    """Return True if a tensor is stored as plain floats."""
    return info.dtype in TORCH_DTYPES


def why_not(fold: Fold) -> str | None:
    """Return the reason that a change cannot be subtracted from a weight; None if it can."""
    contribution = fold.contribution
    if contribution.algorithm.replaces:
        return f"{contribution.algorithm.title} replaced the weight"
    if contribution.magnitude:
        return "DoRA divided by norms that are lost"
    if fold.placed.has_residual:
        return "only the base shows the part that its initialisation took"
    if contribution.multiplies:
        return f"{contribution.algorithm.title} depends on the weight that it changed"
    if contribution.algorithm.name not in SUMS_OF_PRODUCTS:
        return f"{contribution.algorithm.title} is no sum of products with a known rounding error"
    return None


class Account(NamedTuple):
    """Counts of a weight's numbers: all, the proved ones, and the impossible ones.

    `off_by` is the largest possible distance of the others from the base's numbers.
    """

    entries: int = 0
    proved: int = 0
    impossible: int = 0
    off_by: float = 0.0

    def plus(self, other: "Account") -> "Account":
        """Return the account of both together."""
        return Account(
            self.entries + other.entries,
            self.proved + other.proved,
            self.impossible + other.impossible,
            max(self.off_by, other.off_by),
        )


@dataclass(frozen=True, slots=True)
class _Term:
    """One change, the same with absolute values, the multiplier, and the roundings of a term."""

    change: Change
    size: Change
    multiplier: float
    roundings: int


class Subtraction:
    """The sum that `folds` added to one weight; `merged` is the resulting tensor, as it is read.

    `working` is the element type, F32 or F64, in which it was folded. Several threads use it at the same time.
    """

    def __init__(self, folds: Sequence[Fold], factors: FactorReader, merged: TensorInfo, working: str) -> None:
        # The parameter of all experts of a layer is changed as a matrix.
        self.merged = merged._replace(shape=folds[0].placed.place.target.shape)
        self._terms = [_term(fold, factors) for fold in folds]
        self._slack = _UNIT[working] * sum(term.roundings for term in self._terms)

    @property
    def blocks(self) -> Cut:
        """The blocks of rows that are restored or compared with the base."""
        return cut(self.merged, BLOCK_ELEMENTS, lcm(*(term.change.together for term in self._terms)))

    def restored(self, rows: Tensor, first: int) -> tuple[Tensor, Account]:
        """Return the most likely `rows` of the base, from the row `first` of the merged weight on, in its type."""
        low, high = self.interval(rows, first)
        found = preimages(low, high, TORCH_DTYPES[self.merged.dtype])
        doubt = torch.where(found.proved, 0.0, high - low)
        counts = low.numel(), int(found.proved.sum()), int(found.impossible.sum())
        return found.values, Account(*counts, off_by=float(doubt.max()))

    def interval(self, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest number that may have stood in each place of `rows` of the merged weight."""
        low, high = rounding_interval(rows.to(TORCH_DTYPES[self.merged.dtype]))
        change, size = torch.zeros_like(low), torch.zeros_like(low)
        for term in self._terms:
            term.change.fold(change, first, term.multiplier)
            own = torch.zeros_like(low)
            term.size.fold(own, first, abs(term.multiplier) + _LITTLE)
            size += _enlarged(own, _LITTLE**4)
        # Where only zeros were added nothing was rounded.
        slack = (high - low).add_(rows.abs()).add_(size, alpha=2).mul_(self._slack).mul_(size != 0)
        return low.sub_(slack).sub_(change), high.add_(slack).sub_(change)


def _term(fold: Fold, factors: FactorReader) -> _Term:
    contribution = fold.contribution
    tensors = factors.read(contribution, torch.float64)
    sizes = {role: _enlarged(one, _LITTLE) if one.is_floating_point() else one for role, one in tensors.items()}
    longest = [_second(tuple(tensor.shape)) for tensor in tensors.values()]
    roundings = _FEW + sum(max(length, contribution.rank or 1) for length in longest)
    return _Term(fold.placed.change(tensors), fold.placed.change(sizes), fold.multiplier, roundings)


def _enlarged(tensor: Tensor, little: float) -> Tensor:
    """Return the absolute values, with a little more for each that is not zero."""
    sizes = tensor.abs()
    return sizes.add_(sizes != 0, alpha=little)


def _second(shape: tuple[int, ...]) -> int:
    """Return the second largest size: the inner dimension of a factor's product is at most this, or the rank."""
    return sorted(shape)[-2] if len(shape) > 1 else 1


class FromMerged:
    """The subtraction of a merge from each weight; `accounts` are those of the written weights, by name.

    `folded_in` has the element types of the computation, as the merge recorded them.
    """

    def __init__(self, folds: Mapping[str, Sequence[Fold]], folded_in: Mapping[str, str]) -> None:
        self._folds, self._folded_in, self._factors = folds, folded_in, FactorReader()
        self.accounts: dict[str, Account] = {}

    def write(self, writer: Writer, infos: Sequence[TensorInfo], progress: Progress) -> None:
        """Write the tensors of a file, which come in its order.

        Raises LoraInspectError where numbers are in one that no base can have become.
        """
        changed = [info for info in infos if info.name in self._folds]
        copied = [info for info in infos if info.name not in self._folds]
        self.accounts |= {info.name: Account() for info in changed}
        with working_crew(BLOCK_ELEMENTS) as crew:
            jobs = ((writer.place(info.name)[0], self._job(writer, info)) for info in changed)
            run_in_order(crew, [copying(writer, writer.spans(copied)), jobs], progress)

    def _job(self, writer: Writer, info: TensorInfo) -> Job[Tools]:
        return Job(partial(self._restore, writer, info), _memory(self._folds[info.name]))

    def _restore(self, writer: Writer, info: TensorInfo, member: Worker[Tools]) -> None:
        weight = Subtraction(self._folds[info.name], self._factors, info, recorded_type(info.dtype, self._folded_in))
        blocks = weight.blocks

        def restore(tools: Tools, number: int) -> Account:
            first, rows = tools.blocks.block(tools.source(info), weight.merged, blocks, number)
            values, account = weight.restored(rows, first)
            writer.write_at(info.name, first * values.nbytes // len(values), bytes_in(values))
            member.done(values.nbytes)
            return account

        self.accounts[info.name] = member.total(blocks.number, restore, Account.plus) or Account()
        if impossible := self.accounts[info.name].impossible:
            raise _changed_since(info, impossible)


class AgainstBase:
    """The comparison of a base's tensors with a model that was merged from it; `unchecked` have no rule.

    `beyond_rules` are tensors that may have changed in unknown ways, and `folded_in` has the element types of the
    computation, as the merge recorded them.
    """

    def __init__(
        self,
        merged: Checkpoint,
        folds: Mapping[str, Sequence[Fold]],
        beyond_rules: Collection[str],
        folded_in: Mapping[str, str],
    ) -> None:
        self._merged, self._folds, self._factors = merged, folds, FactorReader()
        self._beyond_rules, self._folded_in = beyond_rules, folded_in
        self.unchecked: list[str] = []

    def check(self, infos: Iterable[TensorInfo], progress: Progress) -> None:
        """Raise LoraInspectError if a tensor of the base cannot have become that of the merged model."""
        with working_crew(BLOCK_ELEMENTS) as crew:
            crew.run([*self._jobs(infos, progress)], progress)

    def _jobs(self, infos: Iterable[TensorInfo], progress: Progress) -> Iterator[Job[Tools]]:
        for info in infos:
            other, folds = self._merged.tensors.get(info.name), self._folds.get(info.name, ())
            is_plain = other is not None and {info.dtype, other.dtype} <= TORCH_DTYPES.keys()
            is_ruled = info.name not in self._beyond_rules and not (
                folds and (not is_plain or any(map(why_not, folds)))
            )
            if other is None or not is_ruled or (not folds and other.dtype != info.dtype):
                self.unchecked.append(info.name)
                progress(info.nbytes)
            elif folds:
                yield Job(partial(self._check_changed, info, other, folds), _memory(folds))
            else:
                yield Job(partial(self._check_same, info, other))

    def _check_changed(self, info: TensorInfo, other: TensorInfo, folds: Sequence[Fold], member: Worker[Tools]) -> None:
        weight = Subtraction(folds, self._factors, other, recorded_type(other.dtype, self._folded_in))
        blocks, own = weight.blocks, info._replace(shape=weight.merged.shape)

        def count(tools: Tools, number: int) -> int:
            first, rows = tools.blocks.block(tools.source(other), weight.merged, blocks, number)
            low, high = weight.interval(rows, first)
            _, of_base = tools.blocks.block(tools.source(info), own, blocks, number)
            member.done(len(of_base) * (info.nbytes // blocks.of_all))
            return int(((of_base < low) | (of_base > high)).sum())

        differ = member.total(blocks.number, count, lambda one, more: one + more)
        if differ:
            raise _of_another_base(info, self._merged, f"{differ:,} of its {info.numel:,} numbers differ")

    def _check_same(self, info: TensorInfo, other: TensorInfo, member: Worker[Tools]) -> None:
        if other.shape != info.shape or not are_same_bytes(info, other, [(0, 0, info.nbytes)]):
            raise _of_another_base(info, self._merged, "it differs")
        member.done(info.nbytes)


def _memory(folds: Sequence[Fold]) -> int:
    """Return the bytes that the factors take in float64, with their absolute values."""
    return sum(16 * info.numel for fold in folds for info in fold.contribution.operands.values())


def _changed_since(info: TensorInfo, count: int) -> LoraInspectError:
    return RefusedError(
        info.file,
        f"{count:,} numbers of {info.name} are no result of the recorded merge, so the file was changed since",
        "fetch the base itself",
    )


def _of_another_base(info: TensorInfo, merged: Checkpoint, what: str) -> LoraInspectError:
    return RefusedError(
        info.file,
        f"{info.name} did not become that of {merged.path}, as {what}",
        "name the base that was merged into",
    )
