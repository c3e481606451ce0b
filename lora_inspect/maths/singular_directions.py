"""Singular directions of a weight that are replaced by others. Tensor methods alone."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Blocks, Change, LowRank, Transposed


@dataclass(frozen=True, slots=True)
class ReplacedDirections(Change):
    """The last directions of W's singular value decomposition give way to up @ down.

    `up` is (out, count) and `down` (count, columns): as many directions, those of the smallest singular values, as
    there are columns in `up`. Where singular values are equal these are not unique.
    """

    up: Any
    down: Any
    scale: float
    together: int = 1

    @property
    def holds_all(self) -> bool:
        """The decomposition is of all rows."""
        return True

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """The difference of the given directions and the weight's own; not finite where a number of it is not."""
        import torch

        count = self.up.shape[1]
        if not count:
            return LowRank(self.up, self.down, self.scale)
        weight = torch.cat([rows.clone() for _, rows in blocks()])
        if not weight.isfinite().all():
            return LowRank(self.up * float("nan"), self.down, self.scale)
        left, right = _last_directions(weight, count)
        return LowRank(torch.cat([self.up, -left], 1), torch.cat([self.down, right]), self.scale)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raises ValueError: it has to see the whole weight first."""
        raise ValueError("the change is not settled yet")

    def transposed(self) -> Change:
        """The weight is turned round first."""
        return Transposed(self)


def _last_directions(weight: Any, count: int) -> tuple[Any, Any]:
    """(out, count) and (count, columns) whose product is the part of the weight in its last directions.

    They are the eigenvectors of its Gram matrix of the smaller side, which cost less than its singular vectors. It is
    taken in float64, as squares of singular values need twice the digits.
    """
    import torch

    wide = weight.double()
    is_tall = wide.shape[0] > wide.shape[1]
    gram = wide.transpose(0, 1) @ wide if is_tall else wide @ wide.transpose(0, 1)
    directions = torch.linalg.eigh(gram).eigenvectors[:, :count]
    turned = directions.transpose(0, 1)
    parts = (wide @ directions, turned) if is_tall else (directions, turned @ wide)
    return parts[0].to(weight.dtype), parts[1].to(weight.dtype)
