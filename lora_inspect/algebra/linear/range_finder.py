"""The best low-rank factors of a large matrix that is read in blocks of rows, with a certified error.

A randomised block Krylov method keeps the bases of all its steps (Musco & Musco 2015, "Randomized Block Krylov Methods
for Stronger and Faster Approximate Singular Value Decomposition"): it needs no gap in the spectrum. Each step is one
pass over D, which gives both Y = D Q and Z = Dᵀ Y for an orthonormal block Q; the next block is Z without the blocks
before. With Y = U S Vᵀ of all blocks, Uᵀ D = S⁻¹ (Z V)ᵀ needs no further pass, and U is the basis of the source: it is
better than Q by half a step. Only Z has to be that of Y to all digits, so the Y of rows in float32 is multiplied so.

The certificate is ‖D - up down‖² = ‖D‖² - Σ wᵢ² over the kept singular values w of Uᵀ D, plus a bound of the rounding.
If the difference loses digits, a pass with one more block measures ‖D - Y Qᵀ‖ itself; the singular values of Y that are
not kept are added, and nothing is subtracted. A lower bound of the best possible error comes from the values behind the
kept ones, as none is above the true one (Cauchy's interlacing).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.linear.core import ROUNDING
from lora_inspect.algebra.linear.factors import Array

# Each call reads the matrix once: the first row of each block, and its rows in float32 or float64.
Blocks = Callable[[], Iterator[tuple[int, NDArray[numpy.floating[Any]]]]]

# How many times the least possible error the error may be; beyond it a further step is taken.
BOUND = 1.01
_OVERSAMPLING = 10
# The steps of a block, and those of a block whose error is not yet proved to be within `BOUND`.
_STEPS, _MOST_STEPS = 2, 3
# How many directions are looked for first where the error decides the rank.
_FIRST = 64
# The norm of a matrix of normal numbers is on average below the sum of the roots of its sides, and was at most 0.8 more
# than it of 600 matrices with sides from 20 to 384.
_SPREAD = 1.0
# The rounding of a product or a decomposition in float64, beside the norms of its factors. Of sums of 4,096 terms with
# random signs it was half the machine epsilon, with equal signs 40 of them, and of singular value decompositions 20.
_PRODUCT = 64 * float(numpy.finfo(numpy.float64).eps)
# The largest share of a squared error that rounding may be.
_PRECISE = 1e-6
# Squares of the squared norm are taken: within these bounds they stay in the range of float64.
_SMALLEST, _LARGEST = 1e-140, 1e140


@dataclass(frozen=True, slots=True)
class Found:
    """up (rows, rank) @ down (rank, columns) in float64, both with the roots of the singular values.

    `values` are all singular values that were found, falling, at least `rank` of them: none is above the true one by
    more than rounding. `squared_norm` is ‖D‖² in the Frobenius norm. `relative_error` is at least
    ‖D - up down‖ / ‖D‖, and `least_error` at most that of the best factors of this rank. `proved` says that the error
    is at most `BOUND` times the least, or that all that is left is rounding: at most 1e-7 of the norm. `reached` says
    that the error that was asked for is not exceeded; without one it is true. `passes` is how often D was read.
    """

    up: Array
    down: Array
    values: Array
    squared_norm: float
    relative_error: float
    least_error: float
    proved: bool
    reached: bool
    passes: int

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return len(self.down)


def find_range(
    blocks: Blocks,
    shape: tuple[int, int],
    rank: int | None = None,
    seed: int = 0,
    *,
    max_error: float | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    noise: float = 0.0,
) -> Found:
    """Return the factors of a matrix of `shape` (rows, columns): of `rank`, or of the least sufficient rank found.

    `max_error` is the largest ‖D - up down‖ / ‖D‖, `energy` the least share of ‖D‖² that is kept, and `max_rank` the
    most that either may take. `noise` is the standard deviation of the rounding of D's entries. No rank is spent on
    singular values of at most noise (√rows + √columns + 1), the norm of such a matrix (Davidson & Szarek 2001), nor on
    those below 1e-7 of the largest, the rounding of float32. The rank is 0 where nothing else is left.

    The error is within `BOUND` of the best where `proved` says so, and elsewhere as near as one more step gets. The
    same blocks and `seed` give the same bytes with one thread of a BLAS. Memory: 8 bytes times a few times the rank
    times rows + 2 columns, or times rows times columns where the rank is a large part of the smaller side.

    Raises ValueError unless exactly one of `rank`, `max_error` and `energy` is given, in its range. It is also raised
    if the blocks are not the rows of the shape, and if an entry is not finite or ‖D‖² is beyond 1e-140 to 1e140.
    """
    rule = _rule(shape, rank, max_error, energy, max_rank, noise)
    search = _Krylov(_Reader(blocks, shape), seed)
    started, size = 0, min(rule.limit, _FIRST if rank is None else rule.limit) + _OVERSAMPLING
    while search.width + (_MOST_STEPS + 1) * (started + size) <= min(shape):
        started += size
        search.start(size)
        projection, chosen = _refined(search, rule, False)
        size = rule.growth(chosen, started)
        if not size:
            projection, chosen = _refined(search, rule, True)
            return _found(projection, chosen, search.reader.passes)
    projection = _whole(search.reader)
    return _found(projection, rule.choose(projection), search.reader.passes)


def _refined(search: "_Krylov", rule: "_Rule", with_proof: bool) -> "tuple[_Projection, _Choice]":
    """Return the choice once rounding is a small part of the error, and if requested after a step for a proof."""
    while True:
        projection = search.projection
        chosen = rule.choose(projection)
        precise = projection.is_precise(chosen.rank)
        # A measured projection is that of the blocks Q: it needs a step more to be as good as one of the bases U.
        spent = search.steps >= _MOST_STEPS + search.is_measured
        if precise and (chosen.proved or spent or not with_proof):
            return projection, chosen
        search.step(measured=search.is_measured or not precise)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A rank, its relative error and the least one, and how many directions are more than noise."""

    rank: int
    error: float
    least: float
    reached: bool
    available: int

    @property
    def proved(self) -> bool:
        return self.error <= max(BOUND * self.least, ROUNDING)


@dataclass(frozen=True, slots=True)
class _Rule:
    """The most that the rank may be, the error that is asked for, and the largest singular value of noise."""

    limit: int
    max_error: float | None
    edge: float

    def choose(self, projection: "_Projection") -> _Choice:
        """Return the rank of this rule in a projection."""
        if not projection.total:
            return _Choice(0, 0.0, 0.0, True, 0)
        values = projection.values
        edge = max(self.edge, ROUNDING * float(values[0]))
        available = min(self.limit, int(numpy.count_nonzero(values > edge)))
        errors = numpy.sqrt(projection.squared_errors / projection.total)
        rank, reached = available, True
        if self.max_error is not None:
            small = errors[: available + 1] <= self.max_error * (1.0 + 1e-12)
            reached = bool(small[-1])
            rank = int(numpy.argmax(small)) if reached else available
        least = math.sqrt(projection.least_squared_error(rank) / projection.total)
        return _Choice(rank, float(errors[rank]), least, reached, available)

    def growth(self, chosen: _Choice, started: int) -> int:
        """Return the number of additional columns to start with: 0 if the `started` ones suffice for the rank."""
        if chosen.reached:
            # The least rank is at most this one, which a basis with more room may lower.
            return max(0, chosen.rank + _OVERSAMPLING - started)
        if chosen.available + _OVERSAMPLING <= started:
            return 0
        return min(started, self.limit + _OVERSAMPLING - started)


def _rule(
    shape: tuple[int, int],
    rank: int | None,
    max_error: float | None,
    energy: float | None,
    max_rank: int | None,
    noise: float,
) -> _Rule:
    if sum(one is not None for one in (rank, max_error, energy)) != 1:
        raise ValueError("expected exactly one of rank, max_error and energy")
    if energy is not None:
        if not 0.0 <= energy <= 1.0:
            raise ValueError(f"expected an energy from 0 to 1, not {energy}")
        # A share of 1 is one to the digits of float64.
        max_error = math.sqrt(max(1.0 - energy, float(numpy.finfo(numpy.float64).eps)))
    caps = [min(shape), *(cap for cap in (rank, max_rank) if cap is not None)]
    if min(caps) < 1 or not noise >= 0.0 or not (max_error is None or max_error >= 0.0):
        raise ValueError(f"no range of {shape} with rank {rank}, {max_rank}, error {max_error} and noise {noise}")
    return _Rule(min(caps), max_error, noise * (math.sqrt(shape[0]) + math.sqrt(shape[1]) + _SPREAD))


@dataclass(frozen=True, slots=True)
class _Projection:
    """D projected on a part of its range, as the singular value decomposition left values rightᵀ.

    left (rows, n) and right (columns, n) have orthonormal columns. `values` (n,) fall, and `rounding` (n,) is how far
    each may be off. `total` is ‖D‖², and `rest` the squared norm of D without the projection, None where it was not
    measured.
    """

    left: "_Columns"
    values: Array
    right: "_Columns"
    rounding: Array
    total: float
    rest: float | None

    @property
    def squared_errors(self) -> Array:
        """At least ‖D - up down‖² of each rank from 0 on, and at most ‖D‖²."""
        if self.rest is None:
            # ‖D - U W‖² = ‖D‖² - ‖W‖² + 2 <W, W - UᵀD> for an orthonormal U and any W.
            gains = self.values * (self.values - 2.0 * self.rounding).clip(min=0.0)
            errors = self.total - numpy.append(0.0, gains.cumsum())
        else:
            tails = numpy.square(self.values + self.rounding)[::-1].cumsum()[::-1]
            errors = self.rest + numpy.append(tails, 0.0)
        clipped: Array = errors.clip(min=0.0, max=self.total)
        return clipped

    def least_squared_error(self, rank: int) -> float:
        """Return at most ‖D - up down‖² of the best factors of a rank."""
        behind = self.values[rank:] - self.rounding[rank:]
        return float(numpy.square(behind.clip(min=0.0)[::-1]).sum())

    def is_precise(self, rank: int) -> bool:
        """Return True if rounding is a small part of the squared error of a rank."""
        lost = 2.0 * float(self.values[:rank] @ self.rounding[:rank])
        return self.rest is not None or lost <= _PRECISE * float(self.squared_errors[rank])


def _found(projection: _Projection, chosen: _Choice, passes: int) -> Found:
    roots = numpy.sqrt(projection.values[: chosen.rank])
    return Found(
        projection.left.scaled(roots),
        numpy.ascontiguousarray(projection.right.scaled(roots).T),
        projection.values,
        projection.total,
        chosen.error,
        chosen.least,
        chosen.proved,
        chosen.reached,
        passes,
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns (rows, n) as the product of `tall` (rows, m) and `turn` (m, n), which only the written ones need."""

    tall: Array
    turn: Array

    def scaled(self, scales: Array) -> Array:
        """Return the first columns, one for each of the scales (k,), times these, as (rows, k)."""
        columns: Array = self.tall @ (self.turn[:, : len(scales)] * scales)
        return columns


class _Reader:
    """Passes over the blocks of a matrix, in float64, and its squared norm from the first one."""

    def __init__(self, blocks: Blocks, shape: tuple[int, int]) -> None:
        self.shape, self.passes = shape, 0
        self.total = math.nan
        self._blocks = blocks

    def __call__(self) -> Iterator[tuple[int, int, Array, NDArray[numpy.floating[Any]]]]:
        """Yield each block as its first row, the row after its last one, and its rows (last - first, columns), twice.

        The first are in float64, the second as they were read.
        """
        squares: list[float] = []
        some, read = False, 0
        for first, block in self._blocks():
            rows = numpy.asarray(block, numpy.float64)
            last = first + len(rows)
            if rows.ndim != 2 or rows.shape[1] != self.shape[1] or not 0 <= first <= last <= self.shape[0]:
                raise ValueError(f"a block of {rows.shape} from row {first} on is none of a matrix of {self.shape}")
            read += len(rows)
            if not self.passes:
                squares += _squared_norms(rows)
                some = some or bool(rows.any())
            yield first, last, rows, block
        if read != self.shape[0]:
            raise ValueError(f"the blocks have {read:,} rows of {self.shape[0]:,}")
        if not self.passes:
            self.total = math.fsum(squares) if all(map(math.isfinite, squares)) else math.inf
            if some and not _SMALLEST <= self.total <= _LARGEST:
                raise ValueError(f"a squared norm of {self.total:.3g} is not from {_SMALLEST:g} to {_LARGEST:g}")
        self.passes += 1


# So many numbers are squared at a time, in memory near the processor.
_SQUARED = 1 << 15


def _squared_norms(rows: Array) -> list[float]:
    """Return the squared norm of each row, summed pairwise."""
    height = max(1, _SQUARED // max(1, rows.shape[1]))
    with numpy.errstate(over="ignore", under="ignore", invalid="ignore"):
        parts = (numpy.square(rows[first : first + height]) for first in range(0, len(rows), height))
        return [one for part in parts for one in part.sum(axis=1).tolist()]


class _Krylov:
    """The orthonormal blocks of all steps as Q (columns, width), with Y = D Q (rows, width) and Z = Dᵀ Y."""

    def __init__(self, reader: _Reader, seed: int) -> None:
        self.reader = reader
        self.steps = 0
        self._generator = numpy.random.default_rng(seed)
        rows, columns = reader.shape
        self._basis, self._image, self._back = (numpy.empty((side, 0)) for side in (columns, rows, columns))
        self._size = 0
        self._rest: float | None = None
        self._projection: _Projection | None = None

    @property
    def width(self) -> int:
        """The number of directions in the basis."""
        return self._basis.shape[1]

    @property
    def is_measured(self) -> bool:
        """True if the last step measured the norm of D without the projection."""
        return self._rest is not None

    def start(self, size: int) -> None:
        """Take two steps of the last block and of so many random directions; one step for a matrix of zeros."""
        random = self._generator.standard_normal((self.reader.shape[1], size))
        directions = numpy.concatenate([self._back[:, self.width - self._size :], random], axis=1)
        self._size, self.steps = directions.shape[1], 0
        self._extend(directions, measured=False)
        if self.reader.total:
            self.step(measured=False)

    def step(self, measured: bool) -> None:
        """Take one more step of the last block; `measured` also takes the norm of D without the projection."""
        self._extend(self._back[:, -self._size :], measured)

    def _extend(self, directions: Array, measured: bool) -> None:
        block = _orthonormal(directions, self._basis)
        self._basis = numpy.concatenate([self._basis, block], axis=1)
        image = numpy.empty((self.reader.shape[0], self.width))
        image[:, : -self._size] = self._image
        back = numpy.zeros((self.reader.shape[1], self._size))
        single = block.astype(numpy.float32)
        squares = []
        with numpy.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first, last, rows, read in self.reader():
                if measured:
                    # All of Y to all digits: D - Y Qᵀ is orthogonal to Q.
                    image[first:last] = rows @ self._basis
                    squares.append(float(numpy.square(rows - image[first:last] @ self._basis.T).sum()))
                else:
                    image[first:last, -self._size :] = _product(rows, block, read, single)
                back += rows.T @ image[first:last, -self._size :]
        self._image = image
        self._back = numpy.concatenate([self._back, back], axis=1)
        off = _PRODUCT * math.sqrt(self.reader.total)
        self._rest = (math.sqrt(math.fsum(squares)) + off) ** 2 if measured else None
        self._projection = None
        self.steps += 1

    @property
    def projection(self) -> _Projection:
        """D projected on the range of Y from the left; if its rest was measured, on that of Q from the right."""
        if self._projection is None:
            self._projection = self._from_right(self._rest) if self._rest is not None else self._from_left()
        return self._projection

    def _from_right(self, rest: float) -> _Projection:
        left, values, turned = _tall_svd(self._image)
        total = self.reader.total
        rounding = numpy.full(self.width, _PRODUCT * math.sqrt(total))
        return _Projection(left, values, _Columns(self._basis, turned.T), rounding, total, rest)

    def _from_left(self) -> _Projection:
        left, images, turned = _tall_svd(self._image)
        kept = images > ROUNDING * images[0]
        images, turned = images[kept], turned[kept]
        right, values, turn = _tall_svd(self._back @ (turned.T / images))
        # The rounding of Z is the same in all its columns, so that a small image enlarges it.
        total = self.reader.total
        enlarged = 1.0 + numpy.abs(turn) @ (images.max(initial=0.0) / images)
        left = _Columns(left.tall, left.turn[:, kept] @ turn.T)
        return _Projection(left, values, right, _PRODUCT * math.sqrt(total) * enlarged, total, None)


# The largest entry of a product in float32 is at least this one, so that the terms which count keep their digits.
_LEAST_SINGLE = 1e-25


def _product(rows: Array, block: Array, read: NDArray[numpy.floating[Any]], single: NDArray[numpy.float32]) -> Array:
    """Return rows @ block, computed as read @ single if both are in float32 and its range is enough."""
    if read.dtype == numpy.float32:
        product = read @ single
        if _LEAST_SINGLE <= float(numpy.abs(product).max(initial=0.0)) < math.inf:
            return product.astype(numpy.float64)
    return rows @ block


# From this ratio of singular values on, a Gram matrix shows too little of the smallest one.
_SPREAD_OF_GRAM = 1e-6


def _tall_svd(tall: Array) -> tuple[_Columns, Array, Array]:
    """Return the SVD (left, values, right) of (rows, n); Gram matrices halve the time if the digits remain.

    A Gram matrix has half the digits: the first one only makes the columns nearly orthonormal, and the second one, of
    these, has them all.
    """
    is_tall = tall.shape[0] > 2 * tall.shape[1] > 0
    squares, vectors = numpy.linalg.eigh(tall.T @ tall) if is_tall else (numpy.zeros(1), tall)
    if not squares[0] > _SPREAD_OF_GRAM**2 * squares[-1]:
        left, values, right = numpy.linalg.svd(tall, full_matrices=False)
        return _Columns(left, numpy.eye(len(values))), values, right
    roots = numpy.sqrt(squares)
    near = tall @ (vectors / roots)
    triangle = numpy.linalg.cholesky(near.T @ near).T
    turn, values, right = numpy.linalg.svd((triangle * roots) @ vectors.T)
    return _Columns(near, numpy.linalg.solve(triangle, turn)), values, right


def _whole(reader: _Reader) -> _Projection:
    """Return the projection of all of D, held in memory: no more than the bases of a search would be."""
    matrix = numpy.empty(reader.shape)
    for first, last, rows, _ in reader():
        matrix[first:last] = rows
    left, values, right = numpy.linalg.svd(matrix, full_matrices=False)
    off = _PRODUCT * math.sqrt(reader.total)
    rest = (float(numpy.linalg.norm(matrix - left * values @ right)) + off) ** 2
    identity, rounding = numpy.eye(len(values)), numpy.full(len(values), off)
    return _Projection(_Columns(left, identity), values, _Columns(right.T, identity), rounding, reader.total, rest)


def _orthonormal(directions: Array, basis: Array) -> Array:
    """Return orthonormal columns that, with `basis`, span `directions`; projected twice, as once loses digits."""
    block = directions
    for _ in range(2):
        block = _orthonormal_columns(block - basis @ (basis.T @ block))
    return block


# Up to this ratio of the squares of the largest and the smallest pivot the columns are orthonormal to a few digits, and
# to all of them the next time.
_CONDITION = 1e11


def _orthonormal_columns(block: Array) -> Array:
    """Return nearly orthonormal columns of the same span, by Cholesky's root if that keeps the directions."""
    with suppress(numpy.linalg.LinAlgError):  # a direction is no more than rounding
        triangle = numpy.linalg.cholesky(block.T @ block).T
        pivots = numpy.square(triangle.diagonal())
        if pivots.min() * _CONDITION > pivots.max():
            return block @ numpy.linalg.inv(triangle)
    return numpy.linalg.qr(block)[0]
