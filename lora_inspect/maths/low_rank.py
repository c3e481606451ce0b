"""Products of two thin matrices: the best one for a given matrix, with a proof, and norms of products.

The best error of every rank is known from the eigenvalues of the Gram matrix (Eckart & Young 1936), which cost a
fraction of the eigenvectors. A randomised block Krylov method finds the factors if the rank is small and stops when its
error is proved to be within `BOUND`; elsewhere, and if the proof fails, the eigenvectors decide. All of it is computed
in float64.

Source: Musco & Musco 2015, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
Decomposition": unlike plain subspace iteration it needs no gap in the spectrum, and a DoRA change has none.

Norms of products, and of differences of their sums, need no product: a product is a sum of columns times rows. If the
same row is in several products, its columns are subtracted, so that equal parts cost nothing and leave nothing. The
norm of the rest is taken to all digits, in float64.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple

# How many times the least possible error the error may be.
BOUND = 1.01
# Squared singular values below this share of the largest are the rounding of float32.
_NOISE = 1e-14
# A further block that lowers the squared error by less than this share of it is worth a look at the eigenvalues.
_SETTLED = 1e-2
_OVERSAMPLING = 8
# How far from orthogonal a basis may be whose proof is believed; the rounding of float64 is a hundredth of it.
_ORTHOGONAL = 1e-12
# The Krylov method is cheaper than the eigenvectors only while its basis is a small part of the smaller side.
_SMALL_PART = 8
_SEED = 0


@dataclass(frozen=True, slots=True)
class Approximation:
    """up (out, rank) @ down (rank, columns), and ‖matrix - up @ down‖ / ‖matrix‖ in the Frobenius norm, measured."""

    up: Tensor
    down: Tensor
    relative_error: float

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return self.down.shape[0]


def approximate(
    matrix: Tensor, rank: int | None = None, max_error: float | None = None, dtype: torch.dtype | None = None
) -> Approximation:
    """Return an approximation of `rank`, or of the least rank with a relative error of at most `max_error`.

    `matrix` (out, columns) is finite, the factors have `dtype`, or its own if that is None. The rank is lower where the
    matrix has no more: singular values below 1e-7 of the largest are the rounding of float32. The error is at most
    `BOUND` times the least possible for the rank, besides the rounding of the factors, which is at most 2^-23 ·
    sqrt(rank) · ‖matrix‖ in float32. The factors share the singular values evenly. A zero matrix gives rank 1 and error
    0.
    """
    if matrix.shape[0] > matrix.shape[1]:
        found = approximate(matrix.t(), rank, max_error, dtype)
        return Approximation(found.down.t().contiguous(), found.up.t().contiguous(), found.relative_error)
    dtype = dtype or matrix.dtype
    if not matrix.any():
        up, down = (matrix.new_zeros(shape, dtype=dtype) for shape in ((matrix.shape[0], 1), (1, matrix.shape[1])))
        return Approximation(up, down, 0.0)
    # Fourth powers are taken below: with entries of at most 1, which is exact, they stay in the range of float64.
    half = (math.frexp(float(matrix.abs().max()))[1] + 1) // 2
    scaled = _times_two_to(matrix.double(), -2 * half)
    if rank is None:
        left, right = _by_eigenvectors(scaled, None, max_error or 0.0)
    elif (rank + _OVERSAMPLING) * _SMALL_PART > scaled.shape[0]:
        left, right = _by_eigenvectors(scaled, rank)
    else:
        left, right = _krylov(scaled, rank) or _by_eigenvectors(scaled, rank)
    # Half of the exponent each: the factors of the largest numbers are far from the end of the range.
    up, down = _times_two_to(left, half).to(dtype), _times_two_to(right, half).to(dtype)
    norm = scaled.norm()
    rest = scaled.addmm_(_times_two_to(up.double(), -half), _times_two_to(down.double(), -half), alpha=-1)
    return Approximation(up, down, float(rest.norm() / norm))


def _krylov(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """Return (up, down) with an error proved to be within `BOUND` of the least; None if that is not possible.

    A larger basis would be slow, and one that is not orthonormal, as where the matrix has no more directions to give,
    counts singular values twice.

    The proof compares the squared error, ‖A‖² - Σ θᵢ over the Ritz values θ that are kept, with the least one. The Ritz
    values behind them are a lower bound of it, as θᵢ ≤ σᵢ² (Cauchy's interlacing); if that is too low, the eigenvalues
    of the Gram matrix give the least error.
    """
    total = float(matrix.square().sum())
    least: float | None = None
    before = math.inf
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    shape = matrix.shape[1], rank + _OVERSAMPLING
    start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    block = matrix @ start
    basis = matrix.new_empty(matrix.shape[0], 0)
    projected = matrix.new_empty(0, matrix.shape[1])
    while basis.shape[1] + block.shape[1] <= matrix.shape[0] // 2:
        block = _orthonormal(block, basis)
        if bool(((basis.t() @ block).abs() > _ORTHOGONAL).any()):
            return None
        basis = torch.cat([basis, block], 1)
        projected = torch.cat([projected, block.t() @ matrix])
        ritz, vectors = _eigenpairs(projected @ projected.t())
        error = max(0.0, total - float(ritz[:rank].sum()))
        if least is None and before - error <= _SETTLED * error:
            least = float(torch.linalg.eigvalsh(matrix @ matrix.t())[:-rank].clamp(min=0.0).sum())
        if error <= BOUND**2 * (float(ritz[rank:].sum()) if least is None else least):
            return _factors(basis @ vectors, vectors.t() @ projected, ritz, rank)
        before = error
        block = matrix @ projected[-block.shape[1] :].t()
    return None


def _by_eigenvectors(matrix: Tensor, rank: int | None, max_error: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return (up, down) of the least error for `rank`, or for the least rank with a relative error of `max_error`."""
    squares, vectors = _eigenpairs(matrix @ matrix.t())
    if rank is None:
        # What each rank leaves behind, summed from the smallest on, as the large ones would swallow them.
        left_behind = squares.flip(0).cumsum(0).flip(0)
        rank = max(1, int((left_behind > max_error**2 * squares.sum()).sum()))
    return _factors(vectors, vectors.t() @ matrix, squares, rank)


def _factors(vectors: Tensor, projected: Tensor, squares: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (up, down) from left singular vectors (out, n), their products with the matrix, and falling squares.

    Values that are only the float32 rounding of the largest are dropped.
    """
    rank = min(rank, int((squares > _NOISE * squares[0]).sum()))
    roots = squares[:rank].sqrt().sqrt()
    return vectors[:, :rank] * roots, projected[:rank] / roots[:, None]


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Return an orthonormal basis of the part of `block` outside `basis`; projected twice, as once loses digits."""
    for _ in range(2):
        block = torch.linalg.qr(block - basis @ (basis.t() @ block)).Q
    return block


def _eigenpairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a positive semidefinite matrix, falling, and its eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0.0), vectors.flip(1)


def _times_two_to(tensor: Tensor, exponent: int) -> Tensor:
    # In two steps: the power of two alone may be beyond the range where the product is not.
    first = exponent // 2
    return tensor * 2.0**first * 2.0 ** (exponent - first)


# How ‖up @ down‖ is computed. From the two Gram matrices (rank, rank), in the type of the factors, where none of their
# squares is beyond it: it costs least and never waits for a device. The same of factors whose largest entries are 1,
# so that they may be of any size. As the product of the triangles of two QR decompositions, which is a few times as
# much work and keeps all digits where the columns of the product cancel each other; the others lose half of them.
GRAM, SCALED_GRAM, TRIANGLES = "gram", "scaled gram", "triangles"


def product_norm(up: Tensor, down: Tensor, accuracy: str) -> Tensor:
    """Return the Frobenius norm ‖up @ down‖ of (out, rank) and (rank, columns), with one of the accuracies above.

    Infinite where a factor is not finite and none is zero.
    """
    if accuracy == GRAM:
        return _gram_norm(up, down)
    largest = [float(factor.abs().max()) if factor.numel() else 0.0 for factor in (up, down)]
    if 0.0 in largest or not all(map(math.isfinite, largest)):
        return up.new_full((), 0.0 if 0.0 in largest else math.inf)
    up, down = up / largest[0], down / largest[1]
    return (_gram_norm(up, down) if accuracy == SCALED_GRAM else _triangle_norm(up, down)) * largest[0] * largest[1]


def _gram_norm(up: Tensor, down: Tensor) -> Tensor:
    return ((up.transpose(0, 1) @ up) * (down @ down.transpose(0, 1))).sum().clamp(min=0.0).sqrt()


def _triangle_norm(up: Tensor, down: Tensor) -> Tensor:
    left, right = (torch.linalg.qr(factor, mode="r").R for factor in (up, down.t()))
    norm: Tensor = (left @ right.t()).norm()
    return norm


def relative(apart: float, norm: float) -> float:
    """Return the error of a change of so large a `norm`, as a share of it.

    Of no change, as of one that cancels itself out, anything at all is 1: a number that can be stated, as an infinite
    one cannot, and more than any error that is allowed.
    """
    return apart / norm if norm else float(apart != 0.0)


class Product(NamedTuple):
    """up (out, rank) @ down (rank, columns), in float64."""

    up: Tensor
    down: Tensor


class Distance(NamedTuple):
    """‖one - other‖ in the Frobenius norm, and ‖one‖."""

    apart: float
    norm: float

    @property
    def share(self) -> float:
        """The distance as a share of the norm."""
        return relative(self.apart, self.norm)


def distance(ones: list[Product], others: list[Product]) -> Distance:
    """Return the distance of the sum of the products `ones` from that of the `others`, all (out, columns).

    The error is some 1e-16 of the norms of the factors. Factors that are not finite give NaN.
    """
    apart = _norm([*ones, *(product._replace(up=-product.up) for product in others)])
    return Distance(apart if math.isfinite(apart) else math.nan, _norm(ones) if apart else 0.0)


def _norm(products: Iterable[Product]) -> float:
    """Return ‖the sum of the products‖."""
    up, down = _without_doubles(list(products))
    used = up.ne(0).any(0)
    return float(product_norm(up[:, used], down[used], TRIANGLES))


def _without_doubles(products: list[Product]) -> Product:
    """Return the sum as one product with a down that has every row once."""
    found: dict[bytes, int] = {}
    rows: list[Tensor] = []
    whole = torch.cat([product.up for product in products], 1)
    places = []
    for row in (row for product in products for row in product.down):
        place = found.setdefault(row.contiguous().numpy().tobytes(), len(rows))
        if place == len(rows):
            rows.append(row)
        places.append(place)
    up = whole.new_zeros(whole.shape[0], len(rows)).index_add_(
        1, torch.tensor(places, dtype=torch.long, device="cpu"), whole
    )
    return Product(up, torch.stack(rows))
