"""Rotations of blocks, stage after stage, each of blocks that are put together from other rows. Tensor methods alone.

Stage i turns blocks inside groups of 2ⁱ blocks, so that after some stages every row of a group is mixed with every
other one. Source: Liu et al. 2023 (BOFT), whose programs put the groups' rows into different orders.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lora_inspect.maths.change import Change
from lora_inspect.maths.gains import ROWS
from lora_inspect.maths.products import by_rows
from lora_inspect.maths.rotation import identity

# The order in which the blocks of a stage find rows: of rows numbered (count,), whose groups have `group` rows and
# blocks `size`, the numbers one after the other.
Order = Callable[[Any, int, int], Any]


def alternating(numbers: Any, group: int, size: int) -> Any:
    """The first row of a group, the first of its second half, the second, and so on."""
    return numbers.reshape(-1, 2, group // 2).transpose(1, 2).flatten()


def half_blocks(numbers: Any, group: int, size: int) -> Any:
    """Half a block from the first half of a group, one from the second half, and so on; one block alone as it is."""
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
        """Turns whole groups of rows, or each row."""
        last, size = first + rows.shape[0], self.blocks.shape[-1]
        if self.axis == ROWS:
            result = self._turned(rows, self.blocks[:, first // size : last // size], multiplier)
        else:
            result = by_rows(partial(self._turned_back, multiplier=multiplier), rows)
        rows.copy_(result if self.gain is None else result * self.gain[first:last])

    def _turned_back(self, rows: Any, multiplier: float) -> Any:
        """`rows` (n, columns) with each stage applied to their columns."""
        return self._turned(rows.transpose(0, 1), self.blocks, multiplier).transpose(0, 1)

    def _turned(self, vectors: Any, blocks: Any, multiplier: float) -> Any:
        """`vectors` (n, others) with each stage applied to their first axis."""
        size = blocks.shape[-1]
        one = identity(blocks)
        numbers = vectors.new_ones(vectors.shape[0]).long().cumsum(0) - 1
        for stage, own in enumerate(blocks):
            order = self.order(numbers, size << stage, size)
            turned = multiplier * (own - one) + one
            found = turned @ vectors[order].reshape(-1, size, vectors.shape[1])
            vectors = found.reshape(vectors.shape)[order.argsort()]
        return vectors
