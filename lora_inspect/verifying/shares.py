"""Least squares: the share of each change in what was found, how far rounding moves it, and what no change explains.

With x = merged - base and d_t the changes, the shares c minimise ‖x - Σ c_t d_t‖ over a weight, or over all of them.

What is stated with a share, ±, is what rounding may do to it: that by which an exact merge, rounded once, misses 1
(small changes fall between the numbers of a coarse type, which no average brings back), and `SIGMAS` standard errors.
The standard error is that of independent rounding errors, as far as they are seen in what is left of x, or where it is
larger that of the rows: a program that computes DoRA's gain in half precision errs alike in a whole row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from lora_inspect.maths.low_rank import solved, standard_errors
from lora_inspect.maths.retained_share import NOT_FINITE, SIGMAS, why_untold
from lora_inspect.verifying.sums import Sums

# A share may be so far from 1 by what programs round beside the weight: factors, products and scales in bfloat16 are
# off by 2^-9 each.
TOLERANCE = 0.01
# What no change explains may be so much of what was expected, for the same reasons, and so many times what rounding
# the weight once leaves: a program that works in the type of the weight rounds the change and the sum, and of DoRA the
# magnitude, the norm, their quotient and the product.
UNEXPLAINED, ROUNDINGS = 0.02, 8.0


@dataclass(frozen=True, slots=True)
class Shares:
    """The shares in one weight, or in all; every list has an item a term.

    `values` are the coefficients, `noise` what is stated with them, `why` is empty where they are told. `gram` (k, k)
    are the products of the changes, `scatter` (k, k) the variance of the products of x, `lost` (k,) what rounding
    takes. `unexplained`, `rounding`, `allowed` and `expected` are squares: of x without all shares, what of it is
    rounding, what it may be, and of the sum of all changes. `together` is the share of that sum, None without one.
    """

    values: list[float]
    noise: list[float]
    why: list[str]
    gram: Tensor
    scatter: Tensor
    lost: Tensor
    unexplained: float
    rounding: float
    allowed: float
    expected: float
    together: float | None

    @property
    def is_explained(self) -> bool:
        """Whether nothing but rounding is left of x."""
        return self.unexplained <= self.allowed

    @property
    def off(self) -> float:
        """How far beyond its tolerance the worst share that is told is from 1; 0 where all are right."""
        told = (term for term, why in enumerate(self.why) if not why)
        beyond = (abs(self.values[term] - 1) - self.tolerance(term) for term in told)
        return max((0.0, *beyond))

    @property
    def residual(self) -> float | None:
        """What is left of x beyond rounding, over what was expected; None where nothing was."""
        return residual(self.unexplained, self.rounding, self.expected)

    @property
    def tolerance_together(self) -> float:
        """How far from 1 the share of the sum of all changes may be."""
        if self.expected <= 0:
            return TOLERANCE
        error = sqrt(max(0.0, float(self.scatter.sum()))) / self.expected
        return max(TOLERANCE, abs(float(self.lost.sum())) / self.expected + SIGMAS * error)

    def tolerance(self, term: int) -> float:
        """How far from 1 the share may be."""
        return max(TOLERANCE, self.noise[term])


def residual(unexplained: float, rounding: float, expected: float) -> float | None:
    """The size of what no change explains, without rounding, over that of what was expected, from their squares."""
    return sqrt(max(0.0, unexplained - rounding) / expected) if expected > 0 else None


def shares_in(sums: Sums) -> Shares:
    """The shares in one weight."""
    gram, along = sums.gram.sum(0), sums.along.sum(0)
    values = solved(gram, along)
    scores = sums.along - sums.gram @ values
    unexplained = left_over(sums, values.expand_as(sums.along))
    plain, base = float(sums.noise.sum()), float(sums.base_noise.sum())
    rounding = max(plain, float(sums.lost_squares.sum()))
    expected = float(gram.sum())
    allowed = ROUNDINGS * rounding + base + UNEXPLAINED**2 * expected
    level = min(max(unexplained / plain, 1.0), (ROUNDINGS * rounding + base) / plain) if plain else 1.0
    by_entry = ((sums.noise / max(sums.entries, 1))[:, None, None] * sums.gram).sum(0) * level
    by_row = scores.t() @ scores if unexplained <= allowed else torch.zeros_like(by_entry)
    scatter = by_row if by_row.trace() > by_entry.trace() else by_entry
    lost = sums.lost.sum(0)
    noise = _noise(gram, scatter, lost)
    return Shares(
        values=values.tolist(),
        noise=noise,
        why=[NOT_FINITE] * len(noise) if sums.broken else why_untold(gram, noise, [plain * level] * len(noise)),
        gram=gram,
        scatter=scatter,
        lost=lost,
        unexplained=unexplained,
        rounding=rounding,
        allowed=allowed,
        expected=expected,
        together=float(along.sum()) / expected if expected > 0 else None,
    )


def left_over(sums: Sums, values: Tensor) -> float:
    """The square of what is left of x where each row has its own shares, `values` (n, k)."""
    explained = (sums.gram @ values[:, :, None]).squeeze(2) - 2 * sums.along
    return max(0.0, float((sums.found + (explained * values).sum(1)).sum()))


def pooled(parts: Sequence[tuple[Shares, Sequence[int]]], terms: int) -> Shares:
    """The shares over several weights, of which each has some of the `terms`: those that its numbers name.

    What is not told in a weight stays out of it.
    """
    gram = torch.zeros(terms, terms, dtype=torch.float64, device="cpu")
    along = torch.zeros(terms, dtype=torch.float64, device="cpu")
    scatter, lost = gram.clone(), along.clone()
    for shares, numbers in parts:
        told = [term for term, why in enumerate(shares.why) if not why]
        where = torch.tensor([numbers[term] for term in told], dtype=torch.long, device="cpu")
        own = shares.gram[told][:, told]
        gram[where[:, None], where] += own
        scatter[where[:, None], where] += shares.scatter[told][:, told]
        along[where] += own @ torch.tensor([shares.values[term] for term in told], dtype=torch.float64, device="cpu")
        lost[where] += shares.lost[told]
    noise = _noise(gram, scatter, lost)
    expected = float(gram.sum())
    return Shares(
        values=solved(gram, along).tolist(),
        noise=noise,
        why=why_untold(gram, noise, [0.0] * len(noise)),
        gram=gram,
        scatter=scatter,
        lost=lost,
        unexplained=sum(shares.unexplained for shares, _ in parts),
        rounding=sum(shares.rounding for shares, _ in parts),
        allowed=sum(shares.allowed for shares, _ in parts),
        expected=sum(shares.expected for shares, _ in parts),
        together=float(along.sum()) / expected if expected > 0 else None,
    )


def _noise(gram: Tensor, scatter: Tensor, lost: Tensor) -> list[float]:
    noise: list[float] = (solved(gram, lost).abs() + SIGMAS * standard_errors(gram, scatter)).tolist()
    return noise
