"""Slices of a fused layer, each with factors of its own, as one pair of factors, and back. Tensor methods only.

down is stacked and up block-diagonal: diag(u₀, u₁, …) @ [d₀; d₁; …] holds each uᵢ @ dᵢ in the rows of its slice. The
rank is the sum of the ranks, so that an alpha of alpha/rank grows with it. Slices of one down share its columns.
"""

from collections.abc import Sequence
from typing import Any


def shape_of(ups: Sequence[Any], columns: Sequence[int]) -> tuple[int, int]:
    """Return (Σ out, Σ rank) of the fused up, for the first of the `columns` that each of the `ups` (out, rank) has."""
    return sum(up.shape[0] for up in ups), max(first + up.shape[1] for up, first in zip(ups, columns, strict=True))


def place(fused: Any, ups: Sequence[Any], columns: Sequence[int]) -> Any:
    """Put the `ups` into the zeros of `fused`, below each other, each at its own one of the `columns`."""
    row = 0
    for up, first in zip(ups, columns, strict=True):
        fused[row : row + up.shape[0], first : first + up.shape[1]] = up
        row += up.shape[0]
    return fused


def fuse(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return up (Σ out, Σ rank) and down (Σ rank, in) of the slices' `pairs`, up (out, rank) and down (rank, in)."""
    ups, downs = [up for up, _ in pairs], [down for _, down in pairs]
    columns = starts(downs)
    up = place(ups[0].new_zeros(shape_of(ups, columns)), ups, columns)
    down = downs[0].new_zeros(up.shape[1], downs[0].shape[1])
    for part, first in zip(downs, columns, strict=True):
        down[first : first + part.shape[0]] = part
    return up, down


def starts(downs: Sequence[Any]) -> list[int]:
    """Return the first row of each of the `downs` (rank, in) where they are stacked."""
    return [sum(down.shape[0] for down in downs[:number]) for number in range(len(downs))]


def part(up: Any, down: Any, sizes: Sequence[int]) -> list[tuple[Any, Any]] | None:
    """Return the pairs of slices of `sizes` rows and of one rank, or None if `up` is not block-diagonal so."""
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


def has_blocks(up: Any) -> bool:
    """Return True if the first and the last row of `up` (out, rank) share no column, as rows of two slices.

    Training a layer as a whole leaves no 0 in a row; before it all of `up` is 0, which proves nothing.
    """
    first, last = (up[row].float() != 0 for row in (0, -1))
    return bool(first.any() and last.any()) and not bool((first & last).any())
