"""Slices of a fused layer, each with factors of its own, as one pair of factors, and back. Tensor methods alone.

down is stacked and up block-diagonal: diag(u₀, u₁, …) @ [d₀; d₁; …] holds each uᵢ @ dᵢ in the rows of its slice. The
rank is the sum of the ranks, so that an alpha of alpha/rank grows with it.
"""

from collections.abc import Sequence
from typing import Any


def fuse(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """up (Σ out, Σ rank) and down (Σ rank, in) of the slices' `pairs` of up (out, rank) and down (rank, in)."""
    up = pairs[0][0].new_zeros(sum(up.shape[0] for up, _ in pairs), sum(up.shape[1] for up, _ in pairs))
    down = pairs[0][1].new_zeros(up.shape[1], pairs[0][1].shape[1])
    row = column = 0
    for part_up, part_down in pairs:
        rows, columns = slice(row, row + part_up.shape[0]), slice(column, column + part_up.shape[1])
        up[rows, columns] = part_up
        down[columns] = part_down
        row, column = rows.stop, columns.stop
    return up, down


def part(up: Any, down: Any, sizes: Sequence[int]) -> list[tuple[Any, Any]] | None:
    """The pairs of slices of `sizes` rows and of one rank, or None where `up` is not block-diagonal so."""
    rank, rest = divmod(up.shape[1], len(sizes))
    if rest or rank == 0 or sum(sizes) != up.shape[0]:
        return None
    pairs: list[tuple[Any, Any]] = []
    row = 0
    for number, size in enumerate(sizes):
        rows, columns = slice(row, row + size), slice(number * rank, (number + 1) * rank)
        outside = up[rows, : columns.start], up[rows, columns.stop :]
        if any(bool(block.float().any()) for block in outside):
            return None
        pairs.append((up[rows, columns], down[columns]))
        row = rows.stop
    return pairs
