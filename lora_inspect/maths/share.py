"""The share of each change in a found difference, of one weight or of many: least squares from sums of products.

With x = found - base and d_1 … d_k the changes, the shares c minimise ‖x - Σ c_t d_t‖. A merge measures how much of an
adapter its output keeps, and a comparison of two models how much of it is in one of them. Both have one estimator and
differ in their knowledge of the rounding in x. A merge sees the sum at every entry, so that a change below the
resolution of the type has a share too, which says how little of it is left. Of a file of unknown making there are only
the spacing of its numbers, and the part that no share explains.

The ± of a share bounds the effect of rounding: the distance from 1 of an exact merge, rounded once (small changes fall
between the numbers of a coarse type, which no average brings back), and `SIGMAS` standard errors.

The vectors are never held: the sums gather their products while the rows of a weight go by.
"""

from collections.abc import Sequence
from math import isfinite, sqrt

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import GRIDS, ROUNDING

# What is stated with a share are so many standard errors: less than one false alarm in a million modules.
SIGMAS = 5.0
# A share that is stated with as much does not tell a change that is there from one that is not.
OPEN = 0.5
# Why a share is not told.
NO_CHANGE, ROUNDED_AWAY, ALIKE, NOT_FINITE = "no change", "rounding", "alike", "not finite"
REASONS = {
    NO_CHANGE: "the adapter changes nothing there",
    ROUNDED_AWAY: "the change is smaller than what rounding leaves of it",
    ALIKE: "another adapter makes the same change",
    NOT_FINITE: "the merged weights are not finite",
}

# The multiple correlation of a vector with the others from which on its coefficient is open.
DEPENDENT = 0.999


class Share(NamedTuple):
    """The part of a change that the observed difference contains, `value`, and its stated `error`.

    `why` is the reason that the share is not reported, else empty. `noise` is the size of the rounding in the weights
    over that of the change in them, None without a change.
    """

    value: float
    error: float
    why: str
    noise: float | None

    @property
    def reported(self) -> float | None:
        """The value if it is reported, else None."""
        return None if self.why else self.value


class Rounding(NamedTuple):
    """The effect of rounding on x and on its products with k changes, in float64.

    `scatter` (k, k) is the covariance that it gives the products, and `lost` (k,) its further loss of them. Over the
    weights of a change, `square` (k,) is the square of its error, and `least` (k,) that of the smallest change above
    the unknown part of it.
    """

    scatter: Tensor
    lost: Tensor
    square: Tensor
    least: Tensor


class Estimate(NamedTuple):
    """The sums that shares come from, over all entries of a weight, or of several, in float64.

    `along` (k,) are the products x · d_t and `gram` (k, k) those of d_t · d_s.
    """

    along: Tensor
    gram: Tensor
    rounding: Rounding

    @classmethod
    def nothing(cls, changes: int) -> "Estimate":
        """Return the estimate of so many changes over no weight, which others are added to."""

        def zeros(axes: int) -> Tensor:
            return torch.zeros((changes,) * axes, dtype=torch.float64, device="cpu")

        return cls(zeros(1), zeros(2), Rounding(zeros(2), zeros(1), zeros(1), zeros(1)))

    def add(self, other: "Estimate", numbers: Sequence[int]) -> None:
        """Add, in place, the estimate of a weight that has only the changes with these numbers."""
        where = torch.tensor(numbers, dtype=torch.long, device="cpu")
        for total, part in zip((*self[:2], *self.rounding), (*other[:2], *other.rounding), strict=True):
            total[where if total.dim() == 1 else (where[:, None], where)] += part

    def only(self, numbers: Sequence[int], values: Tensor) -> "Estimate":
        """Return the estimate of some of the changes, as if x had exactly the shares `values` of them."""
        scatter, lost, square, least = self.rounding
        gram, own = self.gram[numbers][:, numbers], scatter[numbers][:, numbers]
        rounding = Rounding(own, lost[numbers], square[numbers], torch.zeros_like(least[numbers]))
        return Estimate(gram @ values, gram, rounding)

    def shares(self) -> list[Share]:
        """Return the share of each change."""
        inverted = inverse(self.gram)
        scatter, lost, square, least = self.rounding
        errors = (inverted @ scatter @ inverted).diagonal().clamp(min=0.0).sqrt()
        stated = (inverted @ lost).abs() + SIGMAS * errors
        columns = inverted @ self.along, stated, least, square, self.gram.diagonal()
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            Share(value, error, _why(number, self.gram, error, smallest), sqrt(added / own) if own > 0 else None)
            for number, (value, error, smallest, added, own) in enumerate(rows)
        ]

    @property
    def together(self) -> float | None:
        """The share of the sum of all changes, None where that is nothing."""
        square = float(self.gram.sum())
        return float(self.along.sum()) / square if square > 0 else None


def _why(number: int, gram: Tensor, error: float, least: float) -> str:
    square = float(gram[number, number])
    if square <= 0:
        return NO_CHANGE
    if _is_dependent(gram, number):
        return ALIKE
    return ROUNDED_AWAY if square < least or error >= OPEN else ""


def inverse(gram: Tensor) -> Tensor:
    """Return the inverse of a matrix with entries of any size, or the pseudo-inverse if there is none."""
    if not len(gram):
        return gram
    sizes = gram.diagonal().sqrt()
    scale = torch.where(sizes > 0, 1 / sizes, 0.0)
    inverted: Tensor = torch.linalg.pinv(gram * scale[:, None] * scale, rtol=1e-9, hermitian=True)
    return inverted * scale[:, None] * scale


def _is_dependent(gram: Tensor, number: int) -> bool:
    """Return True if the others nearly make up one vector, which is not 0, so that its coefficient is open."""
    square = float(gram[number, number])
    others = [other for other in range(len(gram)) if other != number and gram[other, other] > 0]
    shared = gram[number, others]
    return float(shared @ inverse(gram[others][:, others]) @ shared) > DEPENDENT**2 * square


# What is multiplied at a time: it stays in a cache, and float32 adds it up without losing more than a millionth.
_TOGETHER = 1 << 16

Spans = Sequence[tuple[int, int]]


class StepSums(NamedTuple):
    """The products of k changes and of their total rounding error e, in float64, over the `looked_at` entries.

    The output is the base + Σ d_t + e. `products` (k + 1, k + 1) are those of d_1 … d_k and e with each other; d_t is
    the change by adapter t after those before it. `base` is the square of the base.
    """

    products: Tensor
    base: float
    looked_at: int


def both(one: StepSums | None, other: StepSums | None) -> StepSums | None:
    """Return the sums over both; None is over nothing."""
    if one is None or other is None:
        return one or other
    return StepSums(one.products + other.products, one.base + other.base, one.looked_at + other.looked_at)


class RowObserver:
    """A record of some rows of a block of a weight: before, after each of so many `changes`, and as written.

    `spans` are the (start, stop) of those rows in the weight; the block begins at its row `first`.
    """

    def __init__(self, spans: Spans, rows: Tensor, first: int, changes: int) -> None:
        self._spans = [(start - first, stop - first) for start, stop in spans]
        count = sum(stop - start for start, stop in spans)
        self._seen = rows.new_empty(changes + 2, count, rows.shape[1])
        self._next = 0
        self.see(rows)

    def see(self, rows: Tensor) -> None:
        """Record the current state of the block; `rows` begin at the same row."""
        kept, at = self._seen[self._next], 0
        for start, stop in self._spans:
            kept[at : at + stop - start].copy_(rows[start:stop])
            at += stop - start
        self._next += 1

    def sums(self) -> StepSums:
        """Return the sums over these rows, once all is seen."""
        seen = self._seen.view(len(self._seen), -1)
        products, base = _products(seen)
        if not (isfinite(base) and products.isfinite().all()):  # squares beyond float32
            products, base = _products(seen.double())
        return StepSums(products, base, seen.shape[1])


def _products(seen: Tensor) -> tuple[Tensor, float]:
    """Return the products of the steps between neighbouring rows, and the square of the first row."""
    products, base = seen.new_zeros(len(seen) - 1, len(seen) - 1, dtype=torch.float64), 0.0
    memory = seen.new_empty(len(products), min(seen.shape[1], _TOGETHER))
    for begin in range(0, seen.shape[1], _TOGETHER):
        part = seen[:, begin : begin + _TOGETHER]
        steps = torch.sub(part[1:], part[:-1], out=memory[:, : part.shape[1]])
        products += torch.mm(steps, steps.t())
        base += torch.dot(part[0], part[0]).item()
    return products, base


# A change is known as the difference of two numbers of the working type, each of which is rounded.
_ROUNDINGS = 2


def estimate_of(sums: StepSums, entries: int, working: str) -> Estimate:
    """Return the estimate of one weight with so many entries, folded in the type `working`, with known rounding.

    x itself contains the loss by rounding, so `lost` is 0; only the rounding of that type is unknown.
    """
    times = entries / sums.looked_at
    products = sums.products * times
    gram, rounding = products[:-1, :-1], products[:-1, -1]
    left = float(products[-1, -1])
    changed = (gram.diagonal() > 0).double()
    known = Rounding(
        scatter=gram * (left / entries * times),
        lost=torch.zeros_like(changed),
        square=changed * left,
        least=changed * (sums.base * times * _ROUNDINGS * ROUNDING * 4.0 ** -GRIDS[working].bits),
    )
    return Estimate(gram.sum(1) + rounding, gram, known)


def unknown_rounding(
    by_row: Tensor, noise: Tensor, entries: int, level: float, lost: Tensor, scores: Tensor | None
) -> Rounding:
    """Return the rounding of one weight if little is known about it.

    `by_row` (n, k, k) are the products of the changes in each row of so many `entries`, `noise` (n,) the sums of the
    variances that the type gives them. `level` is the ratio of the observed variance to these, `lost` (k,) the loss of
    an exact merge. The errors are independent or, if that makes a larger difference, equal in a whole row, as in a
    program that computes DoRA's gain in half precision. `scores` (n, k) are the products of the changes with the rest
    of x, None if that is no rounding.
    """
    scatter = ((noise / max(entries, 1))[:, None, None] * by_row).sum(0) * level
    if scores is not None and (in_rows := scores.t() @ scores).trace() > scatter.trace():
        scatter = in_rows
    square = torch.full_like(lost, float(noise.sum()) * level)
    return Rounding(scatter, lost, square, square)
