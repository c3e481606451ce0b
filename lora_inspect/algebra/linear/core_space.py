"""The core space of changes of one weight: a small matrix for each, in one pair of orthonormal bases.

With D_i = U_i S_i V_iᵀ the bases are the left singular vectors of [U_i S_i^½]_i and of [V_i S_i^½]_i, by their falling
singular values. So they depend neither on the order of the changes nor on the split of their factors. The core of D_i
is M_i = P_Uᵀ D_i P_V, and a matrix M in their place is the change P_U M P_Vᵀ, with the norm and the singular values of
M. No basis is formed: both are products of the factors with small matrices.

Sources: core space (arXiv 2509.17786) with balanced factors; singular values by Gram matrices as in `core`.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy

from lora_inspect.algebra.linear.core import Core, Decomposed, Trim, root
from lora_inspect.algebra.linear.factors import Array, Factors, joined
from lora_inspect.fast_namedtuple import NamedTuple

# Directions of the joined factors below this share of the largest one are rounding.
_ROUNDING = 1e-8
# The same of values that are roots of eigenvalues, which have half of the digits.
_ROUNDING_OF_ROOTS = 1e-7
# Where two singular values of the joined factors agree to this, their vectors may be turned into each other.
_ALIKE = 1e-6


class _Basis(NamedTuple):
    """The basis of a side: `turn` (rank, k) makes it of the joined factors, `coordinates` (k, ranks) has all U S^½."""

    turn: Array
    coordinates: Array
    is_unique: bool


class CoreSpace:
    """The cores (k, l) of changes of one weight, without directions below a share of the largest singular value.

    `shares` has that share for each change. `is_unique` says that no other basis is as good, so that methods which look
    at single numbers of a core mean these numbers. Raises FloatingPointError for factors with NaN or infinity.
    """

    def __init__(self, changes: Sequence[Factors], shares: Sequence[float]) -> None:
        self._joined = joined(changes)
        trims = [_balanced(change, share) for change, share in zip(changes, shares, strict=True)]
        edges = numpy.cumsum([0, *(trim.up.shape[1] for trim in trims)])
        ups = _basis(self._joined.up, [trim.up for trim in trims])
        downs = _basis(self._joined.down.T, [trim.down.T for trim in trims])
        self._up, self._down = ups.turn, downs.turn
        self.cores: list[Array] = [
            ups.coordinates[:, first:last] @ downs.coordinates[:, first:last].T for first, last in pairwise(edges)
        ]
        self.is_unique = ups.is_unique and downs.is_unique

    def change(self, left: Array, values: Array, right: Array) -> Factors:
        """Return the change with the core left · diag(values) · right, of rank r, in factors of equal norms.

        `left` is (k, r), `values` (r,) and `right` (r, l).
        """
        roots = numpy.sqrt(values)
        trim = Trim(self._up @ (left * roots), (roots[:, None] * right) @ self._down.T)
        return trim.of(self._joined)


def leading_cores(changes: Sequence[Decomposed], most: int) -> list[Array]:
    """Return the cores (n, k, l) of the `most` strongest directions of each change, up to signs.

    They are those of `CoreSpace` for changes of these directions, by the eigenvectors of Gram matrices, which take half
    the time; behind them are rows and columns of zeros. The changes of each of n weights are in bases that they share,
    so that no factor is as long as the weight.
    """
    roots = [numpy.sqrt(one.values[:, None, :most]) for one in changes]
    sides = [
        numpy.concatenate([side[:, :, :most] * own for side, own in zip(columns, roots, strict=True)], 2)
        for columns in ([one.left for one in changes], [one.right for one in changes])
    ]
    squares, vectors = numpy.linalg.eigh(numpy.stack([side.swapaxes(1, 2) @ side for side in sides]))
    if squares.size:
        squares = numpy.where(squares > _ROUNDING_OF_ROOTS**2 * squares[..., -1:], squares, 0.0)
    # The columns of a side in the basis of its left singular vectors.
    ups, downs = (vectors * numpy.sqrt(squares)[..., None, :]).swapaxes(2, 3)[..., ::-1, :]
    edges = [0, *accumulate(own.shape[2] for own in roots)]
    return [ups[..., first:last] @ downs[..., first:last].swapaxes(1, 2) for first, last in pairwise(edges)]


def _balanced(change: Factors, share: float) -> Trim:
    """Return the small matrices that make U S^½ and S^½ Vᵀ of the factors of a change."""
    if not change.rank:
        return Trim(numpy.zeros((0, 0)), numpy.zeros((0, 0)))
    core = Core(change)
    rank = min(core.rounding_rank, int(numpy.count_nonzero(core.values > share * core.values[0])))
    return core.trim(rank)


def _basis(tall: Array, turns: Sequence[Array]) -> _Basis:
    """Return the basis of the columns tall · turn of all changes; `tall` has their factors next to each other."""
    rank, count = sum(len(turn) for turn in turns), sum(turn.shape[1] for turn in turns)
    together = numpy.zeros((rank, count))
    row = column = 0
    for turn in turns:
        together[row : row + turn.shape[0], column : column + turn.shape[1]] = turn
        row, column = row + turn.shape[0], column + turn.shape[1]
    if not count:
        return _Basis(together, numpy.zeros((0, 0)), True)
    _, values, right = numpy.linalg.svd(root(tall) @ together, full_matrices=False)
    kept = int(numpy.count_nonzero(values > _ROUNDING * values[0]))
    values, right = values[:kept], right[:kept]
    is_unique = bool((values[:-1] - values[1:] > _ALIKE * values[:-1]).all())
    return _Basis(together @ (right.T / values), values[:, None] * right, is_unique)
