"""A weight without what was added to it: which numbers of its type the base can have had, a block of rows at a time.

A change is computed in float64 here. What a merge computed in float32 is off by at most n · 2^-24 times the sum of the
absolute values of all that was added, with n roundings on the way of each term, and in float64 by n · 2^-53 times that,
as what is computed here may be too; so this holds whichever machine, version or order of sums made the merged file.
Beside zero a rounding is off by more than that, so what is not zero counts as a little larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.change import Change
from lora_inspect.maths.rounding import preimages, rounding_interval
from lora_inspect.maths.tensors import TORCH_DTYPES, Cut, cut
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.merging.working import DOUBLE, SINGLE

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
    """Whether a tensor is stored as plain floats."""
    return info.dtype in TORCH_DTYPES


def why_not(fold: Fold) -> str | None:
    """Why a change cannot be taken out of a weight again; None where it can."""
    contribution = fold.contribution
    if contribution.algorithm.replaces:
        return f"{contribution.algorithm.title} took the place of the weight"
    if contribution.magnitude:
        return "DoRA divided by norms that are lost"
    if fold.placed.has_residual:
        return "what its initialisation took from the base is found from the base alone"
    if contribution.multiplies:
        return f"{contribution.algorithm.title} depends on the weight that it changed"
    if contribution.algorithm.name not in SUMS_OF_PRODUCTS:
        return f"{contribution.algorithm.title} is no sum of products, of which is known how far rounding goes"
    return None


class Account(NamedTuple):
    """How many numbers of a weight there are, are proved, and cannot have been there at all.

    `off_by` is how far one of the others may be from what the base had.
    """

    entries: int = 0
    proved: int = 0
    impossible: int = 0
    off_by: float = 0.0

    def plus(self, other: "Account") -> "Account":
        """Both together."""
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
    """What was added to one weight, by the `folds` that added it; `merged` is the tensor that it became, as it is read.

    `working` is the element type, F32 or F64, that it was folded in. Several threads use it at the same time.
    """

    def __init__(self, folds: Sequence[Fold], factors: FactorReader, merged: TensorInfo, working: str) -> None:
        # The parameter of all experts of a layer is changed as a matrix.
        self.merged = merged._replace(shape=folds[0].placed.place.target.shape)
        self._terms = [_term(fold, factors) for fold in folds]
        self._slack = _UNIT[working] * sum(term.roundings for term in self._terms)

    @property
    def blocks(self) -> Cut:
        """How its rows are cut into the blocks that are restored or held against the base."""
        return cut(self.merged, BLOCK_ELEMENTS, lcm(*(term.change.together for term in self._terms)))

    def restored(self, rows: Tensor, first: int) -> tuple[Tensor, Account]:
        """Of `rows` of the merged weight, from the row `first` on, what the base most likely had, in its type."""
        low, high = self.interval(rows, first)
        found = preimages(low, high, TORCH_DTYPES[self.merged.dtype])
        doubt = torch.where(found.proved, 0.0, high - low)
        counts = low.numel(), int(found.proved.sum()), int(found.impossible.sum())
        return found.values, Account(*counts, off_by=float(doubt.max()))

    def interval(self, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The least and the greatest number that may have stood in each place of `rows` of the merged weight."""
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
    """The absolute values, each that is not zero with a little more."""
    sizes = tensor.abs()
    return sizes.add_(sizes != 0, alpha=little)


def _second(shape: tuple[int, ...]) -> int:
    """The second largest size: what a factor is multiplied along is no longer, or as long as the rank."""
    return sorted(shape)[-2] if len(shape) > 1 else 1
