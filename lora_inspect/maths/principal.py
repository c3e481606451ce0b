"""What is added to a weight in the place of its own largest singular directions."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Blocks, Change, LowRank, Transposed


@dataclass(frozen=True, slots=True)
class BesidePrincipal(Change):
    """W + multiplier · scale · (up @ down - Wᵣ), where Wᵣ is the best approximation of W that has the rank of the pair.

    `up` is (out, rank) and `down` (rank, columns). Wᵣ is computed from all of W, which takes as long as its singular
    value decomposition; where its singular values do not fall after the rank it is no single one.
    """

    up: Any
    down: Any
    scale: float

    @property
    def together(self) -> int:
        """All rows, which the decomposition is of."""
        rows: int = self.up.shape[0]
        return rows

    @property
    def holds_all(self) -> bool:
        """The decomposition is of all rows."""
        return True

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """The change with the weight's own part in it."""
        import torch

        weight = torch.cat([rows for _, rows in blocks()])
        if not weight.isfinite().all():
            # Such a weight has no singular values, and what is folded into it is not finite either.
            return LowRank(self.up * float("nan"), self.down, self.scale)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = self.down.shape[0]
        up = torch.cat((self.up, -left[:, :rank] * values[:rank]), dim=1)
        return LowRank(up, torch.cat((self.down, right[:rank])), self.scale)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raises ValueError: what is added depends on the whole weight."""
        raise ValueError("the weight's own singular directions are not known yet")

    def transposed(self) -> Change:
        """The change of the weight turned round."""
        return Transposed(self)
