"""Rotations of blocks of rows or columns of a weight, made from skew-symmetric generators. Tensor methods only.

Rotations may follow in stages, each of blocks of other rows. Stage i turns blocks inside groups of 2ⁱ blocks, so that
after some stages every row of a group is mixed with every other one.

Sources: Qiu et al. 2023 (OFT) for Cayley's transform, Qiu et al. 2025 (OFTv2) for its Neumann series; Liu et al. 2023
(BOFT) for stages; programs order the groups' rows differently.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lora_inspect.maths.change import Change
from lora_inspect.maths.entries import ROWS
from lora_inspect.maths.products import by_rows, product


def identity(blocks: Any) -> Any:
    """Return the identity (size, size) for matrices (count, size, size)."""
    size = blocks.shape[-1]
    return blocks.new_zeros(size, size).fill_diagonal_(1.0)


def from_upper(entries: Any, size: int) -> Any:
    """Return skew-symmetric matrices (count, size, size) from their upper entries (count, size·(size - 1)/2)."""
    upper = entries.new_ones(size, size).triu(1) > 0
    matrices = entries.new_zeros(entries.shape[0], size, size)
    matrices[:, upper] = entries
    return matrices - matrices.transpose(1, 2)


def cayley(skew: Any) -> Any:
    """Return (I + Q)(I - Q)^-1 of skew-symmetric matrices (count, size, size)."""
    return identity(skew) + turn(skew)


def _solved(matrices: Any, right: Any) -> Any:
    return matrices.inverse() @ right


def turn(skew: Any, solved: Callable[[Any, Any], Any] = _solved) -> Any:
    """Return R - I for R = `cayley(skew)`, as (I - Q)^-1 2Q, which keeps the digits of a small Q.

    `solved(matrices, right)` is matrices^-1 right; no singular value of the matrices is below 1.
    """
    return solved(identity(skew) - skew, skew + skew)


def neumann(skew: Any, terms: int) -> Any:
    """Return the first `terms` of I + 2Q + 2Q² + …, which goes towards `cayley`, as PEFT has them.

    The last one, where there are more than two, is counted once and is at least the fourth.
    """
    rotation = identity(skew).expand_as(skew).clone()
    if terms > 1:
        rotation = rotation + 2.0 * skew
    if terms > 2:
        power = skew @ skew
        rotation = rotation + 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            rotation = rotation + 2.0 * power
        rotation = rotation + power @ skew
    return rotation


def limited(skew: Any, most: Any) -> Any:
    """Return the matrices (count, size, size), shrunk to a Frobenius norm of at most `most` each."""
    norms = skew.square().sum((1, 2), keepdim=True).sqrt()
    return skew * (most / norms.clamp(min=most))


@dataclass(frozen=True, slots=True)
class RotatedRows(Change):
    """Wₖ' = (multiplier · (Rₖ - I) + I)ᵀ Wₖ for each block of rows, times the own `gain` of each row, if any.

    `blocks` R are (count, size, size), or one for all blocks of rows, `gain` is (out, 1). No multiplier acts on it.
    """

    blocks: Any
    gain: Any = None

    @property
    def together(self) -> int:
        """The rows of a block."""
        size: int = self.blocks.shape[-1]
        return size

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Turn whole blocks."""
        last, size = first + rows.shape[0], self.together
        one = identity(self.blocks)
        own = self.blocks if self.blocks.shape[0] == 1 else self.blocks[first // size : last // size]
        turned = multiplier * (own - one) + one
        result = (turned.transpose(1, 2) @ rows.reshape(-1, size, rows.shape[1])).reshape(rows.shape)
        rows.copy_(result if self.gain is None else result * self.gain[first:last])


@dataclass(frozen=True, slots=True)
class RotatedColumns(Change):
    """W' = W · diag(R₁, R₂, …)ᵀ, and where there is a `gain` (out, 1) each row times its own.

    `blocks` R are (count, size, size), or one for all blocks of columns; a multiplier does not act on the gain.
    """

    blocks: Any
    gain: Any = None
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Turn each row."""
        one = identity(self.blocks)
        turned = multiplier * (self.blocks - one) + one
        by_block = rows.reshape(rows.shape[0], -1, self.blocks.shape[-1]).transpose(0, 1)
        result = product(by_block, turned.transpose(1, 2)).transpose(0, 1).reshape(rows.shape)
        rows.copy_(result if self.gain is None else result * self.gain[first : first + rows.shape[0]])


# The order in which the blocks of a stage find rows: of rows numbered (count,), whose groups have `group` rows and
# blocks `size`, the numbers one after the other.
Order = Callable[[Any, int, int], Any]


def alternating(numbers: Any, group: int, size: int) -> Any:
    """Return the first row of a group, the first of its second half, the second, and so on."""
    return numbers.reshape(-1, 2, group // 2).transpose(1, 2).flatten()


def half_blocks(numbers: Any, group: int, size: int) -> Any:
    """Return half a block from the first half of a group, one from the second, and so on; a single block unchanged."""
    if group == size:
        return numbers
    return numbers.reshape(-1, 2, group // size, size // 2).transpose(1, 2).flatten()


@dataclass(frozen=True, slots=True)
class Butterfly(Change):
    """W' = B … B₁ B₀ W of rows, or W (B … B₁ B₀)ᵀ of columns, and with a `gain` (out, 1) each row times its own.

    B are the stages of `blocks` R (stages, count, size, size), each with m · (R - I) + I for a multiplier m, which
    does not act on the gain. `axis` is ROWS or COLUMNS.
    """

    blocks: Any
    order: Order
    axis: int
    gain: Any = None

    @property
    def together(self) -> int:
        """The rows of a group of the last stage, where rows are turned."""
        stages, _, size, _ = self.blocks.shape
        largest: int = size << (stages - 1)
        return largest if self.axis == ROWS else 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Turn whole groups of rows, or each row."""
        last, size = first + rows.shape[0], self.blocks.shape[-1]
        if self.axis == ROWS:
            result = self._turned(rows, self.blocks[:, first // size : last // size], multiplier)
        else:
            result = by_rows(partial(self._turned_back, multiplier=multiplier), rows)
        rows.copy_(result if self.gain is None else result * self.gain[first:last])

    def _turned_back(self, rows: Any, multiplier: float) -> Any:
        """Return `rows` (n, columns) with each stage applied to their columns."""
        return self._turned(rows.transpose(0, 1), self.blocks, multiplier).transpose(0, 1)

    def _turned(self, vectors: Any, blocks: Any, multiplier: float) -> Any:
        """Return `vectors` (n, others) with each stage applied to their first axis."""
        size = blocks.shape[-1]
        one = identity(blocks)
        numbers = vectors.new_ones(vectors.shape[0]).long().cumsum(0) - 1
        for stage, own in enumerate(blocks):
            order = self.order(numbers, size << stage, size)
            turned = multiplier * (own - one) + one
            found = turned @ vectors[order].reshape(-1, size, vectors.shape[1])
            vectors = found.reshape(vectors.shape)[order.argsort()]
        return vectors
