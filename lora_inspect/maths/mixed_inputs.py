"""What is added to a weight that is a product with the weight itself. Tensor methods alone."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Blocks, Change
from lora_inspect.maths.products import by_rows, product


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
        mixed = by_rows(lambda own: own @ self.left @ self.right, by_place.flatten(0, 1))
        mixed = mixed.view(by_place.shape).transpose(1, 2).reshape(rows.shape)
        added = mixed + product(self.up[first : first + rows.shape[0]], self.down)
        rows.add_(added * (self.scale * multiplier))
