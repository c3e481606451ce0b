"""The share of each change in what was written, of one weight or of many: least squares, from sums of products.

Unlike a share in a file of unknown making, these are of a rounding that is known entry by entry: a change that lies
below what the type tells apart has a share too, which says how little of it is left.

What the shares of the changes in one written weight are computed from, gathered while its blocks of rows go by.

With d_t the change that adapter t makes, after those before it, and e what rounding adds to all of them, so that what
is written is the base + Σ d_t + e, these are sums of products over the entries that are looked at.

Where the share of a change cannot be told, and why.
"""

from collections.abc import Sequence
from math import isfinite, sqrt

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.low_rank import is_dependent, solved, standard_errors
from lora_inspect.maths.rounding import GRIDS, ROUNDING

# What is multiplied at a time: it stays in a cache, and float32 adds it up without losing more than a millionth.
_TOGETHER = 1 << 16

Spans = Sequence[tuple[int, int]]


class KeptSums(NamedTuple):
    """Of k changes, in float64, over the entries that were `looked_at`.

    `products` (k + 1, k + 1) are those of d_1 … d_k and e with each other, `base` is the square of the base.
    """

    products: Tensor
    base: float
    looked_at: int


def both(one: KeptSums | None, other: KeptSums | None) -> KeptSums | None:
    """The sums over both; None is over nothing."""
    if one is None or other is None:
        return one or other
    return KeptSums(one.products + other.products, one.base + other.base, one.looked_at + other.looked_at)


class Look:
    """Looks at some rows of a block of a weight: before, behind each of so many `changes`, and as they are written.

    `spans` are the (start, stop) of those rows in the weight, of which the block begins with the row `first`.
    """

    def __init__(self, spans: Spans, rows: Tensor, first: int, changes: int) -> None:
        self._spans = [(start - first, stop - first) for start, stop in spans]
        count = sum(stop - start for start, stop in spans)
        self._seen = rows.new_empty(changes + 2, count, rows.shape[1])
        self._next = 0
        self.see(rows)

    def see(self, rows: Tensor) -> None:
        """Keeps what the block is now: `rows` begin with the same one."""
        kept, at = self._seen[self._next], 0
        for start, stop in self._spans:
            kept[at : at + stop - start].copy_(rows[start:stop])
            at += stop - start
        self._next += 1

    def sums(self) -> KeptSums:
        """The sums over these rows, once all is seen."""
        seen = self._seen.view(len(self._seen), -1)
        products, base = _products(seen)
        if not (isfinite(base) and products.isfinite().all()):  # squares beyond float32
            products, base = _products(seen.double())
        return KeptSums(products, base, seen.shape[1])


def _products(seen: Tensor) -> tuple[Tensor, float]:
    """Those of the steps from each row to the next with each other, and of the first row with itself."""
    products, base = seen.new_zeros(len(seen) - 1, len(seen) - 1, dtype=torch.float64), 0.0
    memory = seen.new_empty(len(products), min(seen.shape[1], _TOGETHER))
    for begin in range(0, seen.shape[1], _TOGETHER):
        part = seen[:, begin : begin + _TOGETHER]
        steps = torch.sub(part[1:], part[:-1], out=memory[:, : part.shape[1]])
        products += torch.mm(steps, steps.t())
        base += torch.dot(part[0], part[0]).item()
    return products, base


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


def why_untold(gram: Tensor, noise: Sequence[float], rounding: Sequence[float]) -> list[str]:
    """What keeps each share from being told, empty for nothing.

    `gram` (k, k) are the products of the changes, `noise` is what is stated with each share, and `rounding` the squares
    of what changes that are smaller are lost in.
    """
    return [_why(number, gram, one, least) for number, (one, least) in enumerate(zip(noise, rounding, strict=True))]


def _why(number: int, gram: Tensor, noise: float, rounding: float) -> str:
    square = float(gram[number, number])
    if square <= 0:
        return NO_CHANGE
    if is_dependent(gram, number):
        return ALIKE
    return ROUNDED_AWAY if square < rounding or noise >= OPEN else ""


# A change is known as the difference of two numbers of the working type, each of which is rounded.
_ROUNDINGS = 2


class KeptShare(NamedTuple):
    """How much of a change is in what was written, None where that cannot be told, and then `why`.

    `noise` is the size of what rounding adds to the weights, over that of the change in them.
    """

    value: float | None
    noise: float | None
    why: str = ""


class Kept(NamedTuple):
    """What the shares of k changes come from: sums over all entries of a weight, or of several, in float64.

    With x = written - base, `along` (k,) are the products x · d_t and `gram` (k, k) those of d_t · d_s; `scatter`
    (k, k) is the covariance that rounding gives `along`. Of the weights that a change is in, `left` (k,) is the square
    of what rounding adds to them, and `unsure` (k,) that of what the working type leaves open of the change.
    """

    along: Tensor
    gram: Tensor
    scatter: Tensor
    left: Tensor
    unsure: Tensor

    def add(self, other: "Kept", numbers: Sequence[int]) -> None:
        """Adds, in place, those of a weight that has some of the changes: those that the numbers name."""
        where = torch.tensor(numbers, dtype=torch.long, device="cpu")
        for total, part in zip(self, other, strict=True):
            total[where if total.dim() == 1 else (where[:, None], where)] += part

    def shares(self) -> list[KeptShare]:
        """The share of each change."""
        values = solved(self.gram, self.along).tolist()
        errors = (SIGMAS * standard_errors(self.gram, self.scatter)).tolist()
        whys = why_untold(self.gram, errors, self.unsure.tolist())
        return [
            KeptShare(None if why else value, sqrt(left / square) if square > 0 else None, why)
            for value, why, left, square in zip(
                values, whys, self.left.tolist(), self.gram.diagonal().tolist(), strict=True
            )
        ]


def kept_in(sums: KeptSums, entries: int, working: str) -> Kept:
    """Those of one weight of so many entries, folded in the type `working`, from what was looked at."""
    times = entries / sums.looked_at
    products = sums.products * times
    gram, rounding = products[:-1, :-1], products[:-1, -1]
    left = float(products[-1, -1])
    changed = (gram.diagonal() > 0).double()
    return Kept(
        along=gram.sum(1) + rounding,
        gram=gram,
        scatter=gram * (left / entries * times),
        left=changed * left,
        unsure=changed * (sums.base * times * _ROUNDINGS * ROUNDING * 4.0 ** -GRIDS[working].bits),
    )


def nothing_kept(changes: int) -> Kept:
    """That of so many changes over no weight, which others are added to."""
    return Kept(*(torch.zeros((changes,) * axes, dtype=torch.float64, device="cpu") for axes in (1, 2, 2, 1, 1)))
