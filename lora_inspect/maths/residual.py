"""What an initialisation leaves of a weight once it has taken the factors that training starts from out of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lora_inspect.maths.change import Blocks, Change
from lora_inspect.maths.products import add_product


@dataclass(frozen=True, slots=True)
class Residual(Change):
    """W - multiplier · scale · up @ down, with the factors that `take(weight)` takes from the whole weight (out, in).

    `factors` are these, None until the weight has been seen; from then on it stays what it is whatever it is folded
    into. Finding them needs the whole weight in memory, in the dtype that it is folded in, a few times over.
    """

    take: Callable[[Any], tuple[Any, Any]]
    scale: float
    factors: tuple[Any, Any] | None = None
    together: int = 1

    @property
    def holds_all(self) -> bool:
        """The factors are taken from all rows."""
        return True

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Takes the factors from the weight, once."""
        if self.factors is not None:
            return self
        import torch

        rows = sorted(((first, rows.clone()) for first, rows in blocks()), key=lambda block: block[0])
        weight = torch.cat([block for _, block in rows])
        if not weight.isfinite().all():
            # Nothing can be taken from it, which shows in what is left as in the weight.
            return replace(self, factors=(weight[:, :1] * torch.nan, weight[:1]))
        return replace(self, factors=self.take(weight))

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Takes the product's rows away; raises ValueError before the weight was seen."""
        if self.factors is None:
            raise ValueError("what is left of a weight is not known before the weight was seen")
        up, down = self.factors
        add_product(rows, up[first : first + rows.shape[0]] * -(self.scale * multiplier), down)
