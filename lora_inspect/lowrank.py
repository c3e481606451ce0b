"""The best product of two thin matrices for a given one, by a randomised block Krylov method.

Source: Musco & Musco 2015, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
Decomposition": unlike plain subspace iteration it needs no gap in the spectrum, and a DoRA change has none.
"""

from dataclasses import dataclass

import torch

# Squared singular values below this share of the largest are the rounding of float32.
_NOISE = 1e-14
# A further block that lowers the error by less than this share of it ends the search.
_CONVERGED = 1e-3
_OVERSAMPLING = 8
_SEED = 0


@dataclass(frozen=True, slots=True)
class Approximation:
    """up (out, rank) @ down (rank, columns), and ‖matrix - up @ down‖ / ‖matrix‖ in the Frobenius norm, measured."""

    up: torch.Tensor
    down: torch.Tensor
    relative_error: float

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return self.down.shape[0]


def approximate(matrix: torch.Tensor, rank: int | None = None, max_error: float | None = None) -> Approximation:
    """An approximation of `rank`, or of the least rank found whose relative error is at most `max_error`.

    The rank is lower where the matrix has no more. The error is within 1.01 of the best possible for it. The
    factors share the singular values evenly. A zero matrix gives rank 1 and error 0.
    """
    total = float(matrix.square().sum(dtype=torch.float64))
    if total == 0:
        return Approximation(matrix.new_zeros(matrix.shape[0], 1), matrix.new_zeros(1, matrix.shape[1]), 0.0)
    limit = min(matrix.shape)
    width = min(limit, (rank or 16) + _OVERSAMPLING)
    generator = torch.Generator().manual_seed(_SEED)
    block = matrix @ torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    basis = matrix.new_empty(matrix.shape[0], 0)
    projected = matrix.new_empty(0, matrix.shape[1])
    previous: tuple[int, float] | None = None
    while True:
        block = _orthonormal(block, basis)
        basis = torch.cat([basis, block], 1)
        projected = torch.cat([projected, block.transpose(0, 1) @ matrix])
        energies, vectors = _spectrum(projected)
        wanted = min(rank, limit) if rank else _least_rank(energies, total, max_error or 0.0)
        if wanted is not None:
            error = max(0.0, total - float(energies[:wanted].sum())) ** 0.5
            settled = previous is not None and previous[0] == wanted and previous[1] - error <= _CONVERGED * error
            if settled or basis.shape[1] >= limit:
                return _finish(matrix, basis, projected, energies, vectors, wanted, total)
            previous = (wanted, error)
        elif basis.shape[1] >= limit:
            return _finish(matrix, basis, projected, energies, vectors, limit, total)
        left = limit - basis.shape[1]
        block = (matrix @ projected[-block.shape[1] :].transpose(0, 1))[:, :left]


def _orthonormal(block: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of what `block` adds to `basis`; projected twice, as once loses digits."""
    for _ in range(2):
        block = torch.linalg.qr(block - basis @ (basis.transpose(0, 1) @ block)).Q
    return block


def _spectrum(projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared singular values of `projected` (width, columns), falling, and its left singular vectors."""
    wide = projected.double()
    energies, vectors = torch.linalg.eigh(wide @ wide.transpose(0, 1))
    return energies.flip(0).clamp(min=0.0), vectors.flip(1)


def _least_rank(energies: torch.Tensor, total: float, max_error: float) -> int | None:
    """The least number of singular values that leaves at most `max_error`, or None where these are too few."""
    enough = torch.nonzero(total - energies.cumsum(0) <= (max_error**2) * total)
    return int(enough[0]) + 1 if len(enough) else None


def _finish(
    matrix: torch.Tensor,
    basis: torch.Tensor,
    projected: torch.Tensor,
    energies: torch.Tensor,
    vectors: torch.Tensor,
    rank: int,
    total: float,
) -> Approximation:
    rank = min(rank, int((energies > _NOISE * energies[0]).sum()))
    kept, roots = vectors[:, :rank], energies[:rank].sqrt().sqrt()
    up = (basis.double() @ (kept * roots)).to(matrix.dtype)
    down = ((kept / roots).transpose(0, 1) @ projected.double()).to(matrix.dtype)
    error = float((matrix - up @ down).square().sum(dtype=torch.float64))
    return Approximation(up.contiguous(), down.contiguous(), (error / total) ** 0.5)
