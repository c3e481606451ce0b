"""A weight of which each entry is multiplied and moved. Tensor methods alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Change
from lora_inspect.maths.products import product

# The rows `first` to `last` of a matrix, which may have one row or one column for all.
Rows = Callable[[int, int], Any]


def of_matrix(matrix: Any) -> Rows:
    """The rows of a matrix (out or 1, columns or 1)."""
    return lambda first, last: matrix if matrix.shape[0] == 1 else matrix[first:last]


def of_product(up: Any, down: Any) -> Rows:
    """The rows of up @ down, with up (out, rank) and down (rank, columns)."""
    return lambda first, last: product(up[first:last], down)


@dataclass(frozen=True, slots=True)
class ScaledAndMoved(Change):
    """W + W ⊙ factors + terms, each the sum of the given matrices. There is no multiplier but 1."""

    factors: tuple[Rows, ...]
    terms: tuple[Rows, ...]
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Multiplies and moves; raises ValueError for a multiplier that means nothing."""
        if multiplier != 1:
            raise ValueError(f"a weight is scaled and moved or not, which a multiplier of {multiplier:g} does not say")
        last = first + rows.shape[0]
        if self.factors:
            rows.mul_(1 + sum(factor(first, last) for factor in self.factors))
        for term in self.terms:
            rows.add_(term(first, last))
