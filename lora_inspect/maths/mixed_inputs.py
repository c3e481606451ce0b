"""What is added to a weight that is a product with the weight itself. Tensor methods alone."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Blocks, Change


@dataclass(frozen=True, slots=True)
class MixedInputs(Change):
    """W + multiplier · scale · (W · left @ right + up @ down).

    `left` (in, rank) and `right` (rank, in) mix the inputs at each place of a kernel alike; `up` is (out, rank) and
    `down` (rank, in·kernel).
    """

    left: Any
    right: Any
    up: Any
    down: Any
    scale: float
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Needs nothing of the weight but the rows that are folded."""
        return self

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Adds both products' rows."""
        by_place = rows.reshape(rows.shape[0], self.left.shape[0], -1).transpose(1, 2)
        mixed = (by_place @ self.left @ self.right).transpose(1, 2).reshape(rows.shape)
        added = mixed + self.up[first : first + rows.shape[0]] @ self.down
        rows.add_(added * (self.scale * multiplier))
