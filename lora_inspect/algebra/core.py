"""The core of a change: a small matrix with the change's singular values, from which its trims come.

R_U and R_A are square roots of the Gram matrices of D = U A: R_Uᵀ R_U = Uᵀ U and R_Aᵀ R_A = A Aᵀ. The core M = R_U R_Aᵀ
is D in orthonormal bases of its columns and rows, so its SVD M = X S Yᵀ gives the singular values of D, and the nearest
change of rank k is U (R_Aᵀ Y_k S_k^-½) times (S_k^-½ X_kᵀ R_U) A (Eckart & Young 1936). No basis of D is formed.

A root of a Gram matrix by its eigenvectors takes a fraction of the time of a QR decomposition, and keeps 13 digits of
the error of a trim while the condition of the factor is at most 1e7. Beyond that, QR gives the root.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy

from lora_inspect.algebra.factors import Array, Factors
from lora_inspect.fast_namedtuple import NamedTuple

# Up to this condition of a Gram matrix its eigenvectors give the root.
_CONDITION = 1e15
# Directions below this share of the largest singular value are the rounding of the factors.
ROUNDING = 1e-7
# Where changes cancel each other, a rest below this share of the factors' norms is the rounding of float64.
_CANCELLED = 1e-13


def root(tall: Array) -> Array:
    """A matrix (k, rank), k <= rank, with rootᵀ root = tallᵀ tall, of (n, rank)."""
    if tall.shape[0] > tall.shape[1]:
        values, vectors = numpy.linalg.eigh(tall.T @ tall)
        if values[0] * _CONDITION > values[-1]:
            own: Array = numpy.sqrt(values)[:, None] * vectors.T
            return own
    triangle: Array = numpy.linalg.qr(tall, mode="r")  # type: ignore[assignment]  # it is one array in this mode
    return triangle


class Core:
    """The singular values of a change, and the small matrices that turn its factors into those of a trim."""

    def __init__(self, change: Factors) -> None:
        self._root_up, self._root_down = root(change.up), root(change.down.T)
        left, values, right = numpy.linalg.svd(self._root_up @ self._root_down.T, full_matrices=False)
        self._left: Array = left
        self._right: Array = right
        self.values: Array = values
        self._floor = _CANCELLED * float(numpy.linalg.norm(self._root_up) * numpy.linalg.norm(self._root_down))

    @property
    def rounding_rank(self) -> int:
        """How many singular values are more than rounding; 0 of no change, and of changes that cancel each other."""
        return int(numpy.count_nonzero(self.values > max(ROUNDING * self.values[0], self._floor)))

    def trim(self, rank: int) -> "Trim":
        """The matrices that make the nearest change of a rank, at most `rounding_rank`, of the factors."""
        roots = numpy.sqrt(self.values[:rank])
        up = self._root_down.T @ (self._right[:rank].T / roots)
        return Trim(up, (self._left[:, :rank] / roots).T @ self._root_up)


def shared_cores(changes: Sequence[Factors]) -> list[Array]:
    """The changes of one weight in one pair of orthonormal bases, each (k, l): sums, norms and angles are the same.

    The bases span the columns and the rows of all changes together.
    """
    up = root(numpy.concatenate([change.up for change in changes], axis=1))
    down = root(numpy.concatenate([change.down for change in changes]).T)
    edges = numpy.cumsum([0, *(change.rank for change in changes)])
    return [up[:, first:last] @ down[:, first:last].T for first, last in pairwise(edges)]


class Trim(NamedTuple):
    """The matrices (rank before, rank) and (rank, rank before) that factors are multiplied by on their inner sides."""

    up: Array
    down: Array

    def of(self, change: Factors) -> Factors:
        """The trimmed change; both factors have the roots of the singular values, in the type of the change's."""
        kind = change.up.dtype
        return Factors(change.up @ self.up.astype(kind), self.down.astype(kind) @ change.down, change.shape)

    def to(self, rank: int) -> "Trim":
        """That of a smaller rank."""
        return Trim(self.up[:, :rank], self.down[:rank])
