"""Singular directions of a weight that are replaced by others. Tensor methods alone."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Blocks, Change, LowRank, Transposed


@dataclass(frozen=True, slots=True)
class ReplacedDirections:
    """The last directions of W's singular value decomposition give way to up @ down.

    `up` is (out, count) and `down` (count, columns): as many directions, those of the smallest singular values, as
    there are columns in `up`. Where singular values are equal these are not unique.
    """

    up: Any
    down: Any
    scale: float
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """The difference of the given directions and the weight's own; not finite where a number of it is not."""
        import torch

        count = self.up.shape[1]
        if not count:
            return LowRank(self.up, self.down, self.scale)
        weight = torch.cat([rows.clone() for _, rows in blocks()])
        if not weight.isfinite().all():
            return LowRank(self.up * float("nan"), self.down, self.scale)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        up = torch.cat([self.up, -left[:, -count:] * values[-count:]], 1)
        return LowRank(up, torch.cat([self.down, right[-count:]]), self.scale)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raises ValueError: it has to see the whole weight first."""
        raise ValueError("the change is not settled yet")

    def transposed(self) -> Change:
        """The weight is turned round first."""
        return Transposed(self)
