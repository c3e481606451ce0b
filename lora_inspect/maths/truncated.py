"""A weight without its least singular triples, and a product in their place."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Blocks, Change
from lora_inspect.maths.products import add_product


@dataclass(frozen=True, slots=True)
class Truncated(Change):
    """W' = W without its `rank` least singular triples + multiplier · scale · up @ down, of that rank.

    A multiplier does not act on what is taken out. The whole weight is held while it is decomposed.
    """

    up: Any  # (out, rank)
    down: Any  # (rank, columns)
    scale: float
    taken: tuple[Any, Any] | None = None  # (out, rank) and (rank, columns), once the weight is seen
    together: int = 1

    @property
    def holds_all(self) -> bool:
        """The decomposition is of all rows."""
        return True

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Finds the triples."""
        import torch

        # What is not finite has no decomposition; it stays in the rows, which are refused for it.
        weight = torch.cat([rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for _, rows in blocks()])
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = self.up.shape[1]
        return Truncated(self.up, self.down, self.scale, (left[:, -rank:] * values[-rank:], right[-rank:]))

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Takes the triples out and adds the product; raises ValueError before it has seen the weight."""
        if self.taken is None:
            raise ValueError("the singular triples of a weight are not known before all of its rows are seen")
        last = first + rows.shape[0]
        add_product(rows, -self.taken[0][first:last], self.taken[1])
        add_product(rows, self.up[first:last] * (self.scale * multiplier), self.down)
