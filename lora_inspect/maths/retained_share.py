"""The share of each change in what was written, of one weight or of many: least squares, from sums of products.

Unlike a share in a file of unknown making, these are of a rounding that is known entry by entry: a change that lies
below what the type tells apart has a share too, which says how little of it is left.
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.kept_sums import KeptSums
from lora_inspect.maths.least_squares import solved, standard_errors
from lora_inspect.maths.spacing import GRIDS, ROUNDING
from lora_inspect.maths.untold_shares import SIGMAS, why_untold

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
