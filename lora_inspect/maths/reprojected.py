"""Parts of a weight that are taken out and put in anew along given directions. Tensor methods alone."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Blocks, Change, LowRank, summed_products


@dataclass(frozen=True, slots=True)
class Reprojected(Change):
    """W' = W + multiplier · left @ (put - takenᵀ @ W), with left and taken (out, rank) and put (rank, columns).

    A `put` of None puts nothing in.
    """

    left: Any
    taken: Any
    put: Any
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """The product of what is known of the weight then."""
        found = summed_products(self.taken.transpose(0, 1), blocks)
        return LowRank(self.left, -found if self.put is None else self.put - found, 1.0)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raises ValueError: it has to see the whole weight before."""
        raise ValueError("a part of a weight is not known before all of its rows are seen")
