"""The core of a change: a small matrix with the change's singular values, from which its trims come.

R_U and R_A are square roots of the Gram matrices of D = U W A, W the diagonal of weights: R_Uᵀ R_U = Uᵀ U and R_Aᵀ R_A
= A Aᵀ. The core M = R_U W R_Aᵀ is D in orthonormal bases of its columns and rows, so its SVD M = X S Yᵀ gives the
singular values of D. The nearest change of rank k is U (W R_Aᵀ Y_k S_k^-½) times (S_k^-½ X_kᵀ R_U W) A (Eckart & Young
1936). No basis of D is formed.

Every step takes the cheaper of two ways where that keeps the digits: Cholesky's root of a Gram matrix, or else the
triangle of a QR decomposition; the eigenvectors of M Mᵀ, or else the SVD of M.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, pairwise

import numpy

from lora_inspect.algebra.linear.factors import Array, Factors, joined
from lora_inspect.fast_namedtuple import NamedTuple

# Up to this ratio of the squares of the largest and the smallest pivot a root of a Gram matrix keeps its digits.
_CONDITION = 1e11
# Up to this ratio of the largest and the smallest eigenvalue of M Mᵀ their roots are singular values to 6 digits.
_SPREAD = 1e9
# Directions below this share of the largest singular value are the rounding of the factors.
ROUNDING = 1e-7
# Where changes cancel each other, a rest below this share of their directions' norms is the rounding of float64.
_CANCELLED = 1e-13
# A projection that leaves at least this share of the columns leaves nothing else in them.
_LEFT = 0.5


def root(tall: Array) -> Array:
    """Return a matrix (k, rank), k <= rank, with rootᵀ root = tallᵀ tall, of (n, rank).

    Raises FloatingPointError for NaN and infinity.
    """
    tall = tall.astype(numpy.float64, copy=False)
    if (found := _root_of_gram(tall)) is not None:
        return found
    triangle: Array = numpy.linalg.qr(tall, mode="r")  # type: ignore[assignment]  # it is one array in this mode
    return triangle


def _root_of_gram(tall: Array) -> Array | None:
    """Return the root of columns by their Gram matrix; None if its pivots are too far apart.

    Raises FloatingPointError for NaN and infinity.
    """
    with numpy.errstate(invalid="ignore", over="ignore"):
        gram: Array = tall.T @ tall
    if not numpy.isfinite(gram.diagonal()).all():
        raise FloatingPointError("a factor is not finite")
    if tall.shape[0] > len(gram):
        with suppress(numpy.linalg.LinAlgError):  # it has a direction without a length
            found: Array = numpy.linalg.cholesky(gram).T
            pivots = numpy.square(found.diagonal())
            if pivots.min() * _CONDITION > pivots.max():
                return found
    return None


def singular(matrix: Array) -> tuple[Array, Array, Array]:
    """Return the SVD (X, S, Yᵀ) of a small matrix, the values falling.

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
        # Of each direction by itself, as a file may have large numbers in one factor and small ones in the other.
        self._floor = _CANCELLED * float(numpy.linalg.norm(up, axis=0) @ numpy.linalg.norm(down, axis=0))

    @property
    def rounding_rank(self) -> int:
        """The number of singular values above rounding; 0 of no change, and of changes that cancel each other."""
        return int(numpy.count_nonzero(self.values > max(ROUNDING * self.values[0], self._floor)))

    def trim(self, rank: int) -> "Trim":
        """Return the matrices that make the nearest change of a rank, at most `rounding_rank`, of the factors."""
        roots = numpy.sqrt(self.values[:rank])
        up = self._down.T @ (self._right[:rank].T / roots)
        return Trim(up, (self._left[:, :rank] / roots).T @ self._up)


class SharedFactors(NamedTuple):
    """A change up · downᵀ in bases that it shares with others: `up` (k, rank), `down` (l, rank), or stacks of them."""

    up: Array
    down: Array

    @property
    def core(self) -> Array:
        """The change in the shared bases, (k, l): norms, sums and angles are those of the change."""
        core: Array = self.up @ _turned(self.down)
        return core


class Decomposed(NamedTuple):
    """The SVDs of a stack of changes in shared bases: `left` (n, k, r), falling `values` (n, r), `right` (n, l, r)."""

    left: Array
    values: Array
    right: Array


def decomposed(changes: SharedFactors) -> Decomposed | None:
    """Return the SVD of each change of a stack, without rounding; None if the numbers of directions differ.

    Changes without such directions are decomposed together, which saves half of the time of small matrices.
    """
    if (found := _together(changes)) is not None:
        return found
    each = [_decomposed(SharedFactors(*one)) for one in zip(*changes, strict=True)]
    if len({len(one.values) for one in each}) > 1:
        return None
    return Decomposed(*(numpy.stack(parts) for parts in zip(*each, strict=True)))


def _together(changes: SharedFactors) -> Decomposed | None:
    """Return the SVDs as `Core` does; None if a change has directions that are rounding, or nearly so."""
    ups, downs = (_roots_of_grams(side) for side in changes)
    if ups is None or downs is None:
        return None
    cores = ups @ _turned(downs)
    squares, left = numpy.linalg.eigh(cores @ _turned(cores))
    if not (squares[:, 0] * _SPREAD > squares[:, -1]).all():
        return None
    squares, left = squares[:, None, ::-1], left[:, :, ::-1]
    values = numpy.sqrt(squares)
    right = _turned(cores) @ left
    columns, rows = changes.up @ (_turned(downs) @ right / squares), changes.down @ (_turned(ups) @ left / values)
    return Decomposed(columns, values[:, 0], rows)


def _roots_of_grams(sides: Array) -> Array | None:
    """Return the roots of the Gram matrices of several sides (count, n, rank); None if pivots are too far apart."""
    with suppress(numpy.linalg.LinAlgError):  # one has a direction without a length
        found: Array = _turned(numpy.linalg.cholesky(_turned(sides) @ sides))
        pivots = numpy.square(numpy.diagonal(found, axis1=1, axis2=2))
        if pivots.size and (pivots.min(1) * _CONDITION > pivots.max(1)).all():
            return found
    return None


def _turned(matrices: Array) -> Array:
    """Return each matrix of a stack with its rows as columns."""
    return numpy.swapaxes(matrices, -1, -2)


def _decomposed(one: SharedFactors) -> Decomposed:
    """Return the SVD of one change, as in a stack but for the first axis."""
    if not one.up.size or not one.down.size:
        return Decomposed(one.up[:, :0], numpy.zeros(0), one.down[:, :0])
    core = Core(Factors.of(one.up, one.down.T, (len(one.up), len(one.down))))
    rank = core.rounding_rank
    trim, roots = core.trim(rank), numpy.sqrt(core.values[:rank])
    return Decomposed(one.up @ (trim.up / roots), core.values[:rank], one.down @ (trim.down.T / roots))


def shared_cores(changes: Sequence[Factors]) -> list[Array]:
    """Return the changes of one weight in one pair of orthonormal bases, (k, l): sums, norms and angles are kept.

    The bases span the columns and the rows of all changes together.
    """
    return [one.core for one in shared_factors(joined(changes), [change.rank for change in changes])]


def shared_factors(whole: Factors, ranks: Sequence[int]) -> list[SharedFactors]:
    """Return the parts of a sum in one pair of orthonormal bases, which span the columns and rows of them all.

    Each part takes the next of the sum's directions, as many as its number in `ranks`. Raises FloatingPointError for
    factors with NaN or infinity.
    """
    edges = [0, *accumulate(ranks)]
    up, down = _shared_root(whole.up, edges) * whole.weights, _shared_root(whole.down.T, edges)
    return [SharedFactors(up[:, first:last], down[:, first:last]) for first, last in pairwise(edges)]


def _shared_root(tall: Array, edges: Sequence[int]) -> Array:
    """Return the same as `root`, for columns in blocks that may be nearly the same.

    So are those of one change in two element types, and a Gram matrix loses the digits of their difference. So each
    block is first split into its part in the basis of those before it and the rest.
    """
    tall = tall.astype(numpy.float64, copy=False)
    if (found := _root_of_gram(tall)) is not None:
        return found
    basis: Array = numpy.empty((tall.shape[0], 0))
    coordinates: list[Array] = []
    for first, last in pairwise(edges):
        block = tall[:, first:last]
        floor = _CANCELLED * float(numpy.linalg.norm(block))
        inside, rest = _split(block, basis, floor)
        coordinates.append(inside)
        if rest is not None:
            own, outside = _orthonormal(rest, basis, floor)
            basis = numpy.hstack([basis, own])
            coordinates[-1] = numpy.vstack([inside, outside])
    size = basis.shape[1]
    return numpy.hstack([numpy.pad(one, ((0, size - one.shape[0]), (0, 0))) for one in coordinates])


def _split(block: Array, basis: Array, floor: float) -> tuple[Array, Array | None]:
    """Return the coordinates of columns in a basis, and the rest; None for a rest with a norm below the floor."""
    inside, rest, before = numpy.zeros((basis.shape[1], block.shape[1])), block, numpy.linalg.norm(block)
    while basis.shape[1]:
        part = basis.T @ rest
        inside, rest = inside + part, rest - basis @ part
        after = numpy.linalg.norm(rest)
        if after <= floor:
            return inside, None
        # As much of the basis is left in the rest as rounding made, which counts where the rest is small.
        if after > _LEFT * before:
            break
        before = after
    return inside, rest


def _orthonormal(tall: Array, basis: Array, floor: float) -> tuple[Array, Array]:
    """Return an orthonormal basis of columns that are orthogonal to another one, and the columns in it.

    Directions below the floor are rounding, which points anywhere.
    """
    own, coordinates = tall, numpy.eye(tall.shape[1])
    for _ in range(2):  # the first one is orthonormal up to the condition of the columns times their rounding
        if (triangle := _root_of_gram(own)) is None:
            break
        own, coordinates = own @ numpy.linalg.inv(triangle), triangle @ coordinates
    else:
        return own, coordinates
    left, values, right = numpy.linalg.svd(tall, full_matrices=False)
    rank = int(numpy.count_nonzero(values > floor))
    own, turn = numpy.linalg.qr(left[:, :rank] - basis @ (basis.T @ left[:, :rank]))
    return own, turn @ (values[:rank, None] * right[:rank])


class Trim(NamedTuple):
    """The matrices (rank before, rank) and (rank, rank before) that factors are multiplied by on their inner sides."""

    up: Array
    down: Array

    def of(self, change: Factors) -> Factors:
        """Return the trimmed change; both factors have the roots of the singular values, in the change's type."""
        kind = change.up.dtype
        up, down = change.up @ self.up.astype(kind), self.down.astype(kind) @ change.down
        return Factors.of(up, down, change.shape)

    def to(self, rank: int) -> "Trim":
        """Return the trim of a smaller rank."""
        return Trim(self.up[:, :rank], self.down[:rank])
