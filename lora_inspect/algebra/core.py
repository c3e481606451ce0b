"""The core of a change: a small matrix with the change's singular values, from which its trims come.

R_U and R_A are square roots of the Gram matrices of D = U W A, W the diagonal of weights: R_Uᵀ R_U = Uᵀ U and
R_Aᵀ R_A = A Aᵀ. The core M = R_U W R_Aᵀ is D in orthonormal bases of its columns and rows, so its SVD M = X S Yᵀ gives
the singular values of D, and the nearest change of rank k is U (W R_Aᵀ Y_k S_k^-½) times (S_k^-½ X_kᵀ R_U W) A (Eckart
& Young 1936). No basis of D is formed.

Every step takes the cheaper of two ways where that keeps the digits: Cholesky's root of a Gram matrix, or else the
triangle of a QR decomposition; the eigenvectors of M Mᵀ, or else the SVD of M.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import numpy

from lora_inspect.algebra.factors import Array, Factors, joined
from lora_inspect.fast_namedtuple import NamedTuple

# Up to this ratio of the squares of the largest and the smallest pivot a root of a Gram matrix keeps its digits.
_CONDITION = 1e11
# Up to this ratio of the largest and the smallest eigenvalue of M Mᵀ their roots are singular values to 6 digits.
_SPREAD = 1e9
# Directions below this share of the largest singular value are the rounding of the factors.
ROUNDING = 1e-7
# Where changes cancel each other, a rest below this share of the factors' norms is the rounding of float64.
_CANCELLED = 1e-13


def root(tall: Array) -> Array:
    """A matrix (k, rank), k <= rank, with rootᵀ root = tallᵀ tall, of (n, rank).

    Raises FloatingPointError for NaN and infinity.
    """
    gram: Array = tall.T @ tall
    if not numpy.isfinite(gram.diagonal()).all():
        raise FloatingPointError("a factor is not finite")
    if tall.shape[0] > tall.shape[1]:
        with suppress(numpy.linalg.LinAlgError):  # it has a direction without a length
            found: Array = numpy.linalg.cholesky(gram).T
            pivots = numpy.square(found.diagonal())
            if pivots.min() * _CONDITION > pivots.max():
                return found
    triangle: Array = numpy.linalg.qr(tall, mode="r")  # type: ignore[assignment]  # it is one array in this mode
    return triangle


def singular(matrix: Array) -> tuple[Array, Array, Array]:
    """The SVD (X, S, Yᵀ) of a small matrix, the values falling.

    Raises FloatingPointError where their squares are beyond the range of numbers.
    """
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = singular(matrix.T)
        return right.T, values, left.T
    gram: Array = matrix @ matrix.T
    if not numpy.isfinite(gram.diagonal()).all():
        raise FloatingPointError("the squares are beyond the range of numbers")
    squares, vectors = numpy.linalg.eigh(gram)
    if squares[0] * _SPREAD > squares[-1]:
        values = numpy.sqrt(squares[::-1])
        left = vectors[:, ::-1]
        return left, values, (left.T @ matrix) / values[:, None]
    left, values, right = numpy.linalg.svd(matrix, full_matrices=False)
    return left, values, right


class Core:
    """The singular values of a change, and the small matrices that turn its factors into those of a trim.

    Raises FloatingPointError for factors with NaN or infinity.
    """

    def __init__(self, change: Factors) -> None:
        up, down = root(change.up) * change.weights, root(change.down.T)
        self._left, self.values, self._right = singular(up @ down.T)
        self._up, self._down = up, down * change.weights
        self._floor = _CANCELLED * float(numpy.linalg.norm(up) * numpy.linalg.norm(down))

    @property
    def rounding_rank(self) -> int:
        """How many singular values are more than rounding; 0 of no change, and of changes that cancel each other."""
        return int(numpy.count_nonzero(self.values > max(ROUNDING * self.values[0], self._floor)))

    def trim(self, rank: int) -> "Trim":
        """The matrices that make the nearest change of a rank, at most `rounding_rank`, of the factors."""
        roots = numpy.sqrt(self.values[:rank])
        up = self._down.T @ (self._right[:rank].T / roots)
        return Trim(up, (self._left[:, :rank] / roots).T @ self._up)


def shared_cores(changes: Sequence[Factors]) -> list[Array]:
    """The changes of one weight in one pair of orthonormal bases, each (k, l): sums, norms and angles are the same.

    The bases span the columns and the rows of all changes together.
    """
    together = joined(changes)
    up, down = root(together.up) * together.weights, root(together.down.T)
    edges = numpy.cumsum([0, *(change.rank for change in changes)])
    return [up[:, first:last] @ down[:, first:last].T for first, last in pairwise(edges)]


class Trim(NamedTuple):
    """The matrices (rank before, rank) and (rank, rank before) that factors are multiplied by on their inner sides."""

    up: Array
    down: Array

    def of(self, change: Factors) -> Factors:
        """The trimmed change; both factors have the roots of the singular values, in the type of the change's."""
        kind = change.up.dtype
        up, down = change.up @ self.up.astype(kind), self.down.astype(kind) @ change.down
        return Factors.of(up, down, change.shape)

    def to(self, rank: int) -> "Trim":
        """That of a smaller rank."""
        return Trim(self.up[:, :rank], self.down[:rank])
