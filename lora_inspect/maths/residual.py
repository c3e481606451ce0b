"""Initialisations that take factors out of a weight: the factors, and the residual weight."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lora_inspect.maths.change import Blocks, Change
from lora_inspect.maths.products import add_product


@dataclass(frozen=True, slots=True)
class Residual(Change):
    """W - multiplier · scale · up @ down, with the factors of `take(weight)` from the whole weight (out, in).

    `factors` are None until the weight has been read; from then on they stay the same for any weight. Computing them
    needs the whole weight in memory, in the dtype of the folding, a few times over.
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
        """Take the factors from the weight, once."""
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
        """Take the product's rows away; raises ValueError before the weight was seen."""
        if self.factors is None:
            raise ValueError("what is left of a weight is not known before the weight was seen")
        up, down = self.factors
        add_product(rows, up[first : first + rows.shape[0]] * -(self.scale * multiplier), down)


def principal_factors(weight: Any, rank: int, iterations: int | None = None) -> tuple[Any, Any]:
    """Return up (out, rank) and down (rank, in), the best approximation of `weight` (out, in): PiSSA's.

    They share the singular values evenly. None for `iterations` is a full decomposition; a number is that of the
    power iterations of a randomised one, which is much faster and close to it. Source: Meng et al. 2024.
    """
    import torch

    if iterations is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        left, values, transposed = torch.svd_lowrank(weight, rank, niter=iterations)
        right = transposed.t()
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def orthogonal_factors(weight: Any, rank: int) -> tuple[Any, Any]:
    """Return up (out, rank) and down (rank, in) of OLoRA: columns and rows of `weight` (out, in) = Q @ R.

    They are the first ones; the first columns of Q depend only on those of the weight. Source: Büyükakyüz 2024;
    `olora_init` of PEFT.
    """
    import torch

    up = torch.linalg.qr(weight[:, :rank]).Q
    return up, up.transpose(0, 1) @ weight
