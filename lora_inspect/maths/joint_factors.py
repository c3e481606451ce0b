"""A weight taken apart by a basis of its inputs, and put together with another middle: FRoD's change."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lora_inspect.maths.change import Blocks, Change
from lora_inspect.maths.products import by_rows

# Below it PEFT takes a column for zero.
_LEAST_NORM = 1e-12
# What PEFT cuts singular values off at, relative to the largest, where the basis has no inverse.
_CUT = 1e-6


class Basis:
    """V (in, in), whose inverse is found once for all blocks of a weight."""

    def __init__(self, values: Any) -> None:
        self.values = values.double()

    @cached_property
    def apart(self) -> Callable[[Any], Any]:
        """Rows (n, in) of W to rows of X in W = X · Vᵀ; with the pseudo-inverse where V has no inverse."""
        import torch

        factors, pivots, info = torch.linalg.lu_factor_ex(self.values)
        if int(info) and self.values.isfinite().all():
            inverse = torch.linalg.pinv(self.values, rtol=_CUT).transpose(0, 1)
            return lambda rows: rows.double() @ inverse
        return lambda rows: torch.linalg.lu_solve(factors, pivots, rows.double().transpose(0, 1)).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Recombined(Change):
    """W = U · diag(n) · Vᵀ with columns of U of length 1 becomes U · middle · Vᵀ, whole: there is no multiplier but 1.

    `middle` (in, in) is in float64, as everything is computed. `lengths` are n, None until the weight has been seen.
    """

    basis: Basis
    middle: Any
    lengths: Any = None
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Finds the lengths, which are over all rows."""
        squares = sum(by_rows(self.basis.apart, rows).square().sum(0) for _, rows in blocks())
        return replace(self, lengths=squares.sqrt()) if hasattr(squares, "sqrt") else self

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Writes the new rows; ValueError for a multiplier that means nothing, and before the weight was seen."""
        if multiplier != 1 or self.lengths is None:
            raise ValueError(f"a weight is recombined once it was seen, or not; {multiplier:g} says neither")
        known = self.lengths > _LEAST_NORM
        lengths = self.lengths.where(known, 1.0)

        def recombined(own: Any) -> Any:
            units = self.basis.apart(own) * known / lengths
            return units @ self.middle @ self.basis.values.transpose(0, 1)

        rows.copy_(by_rows(recombined, rows))
