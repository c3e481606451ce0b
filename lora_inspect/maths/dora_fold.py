"""DoRA around any change that is added to a weight: V = W + change, each row or column scaled by its magnitude.

Tensor methods only; the formulas are in `dora`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from lora_inspect.maths import dora
from lora_inspect.maths.change import Blocks, Change, Transposed, holds_all, summed


@dataclass(frozen=True, slots=True)
class MagnitudeValues:
    """The vector `values` over output rows or inputs, and its use in the program that wrote it.

    `rule` is the rule for a multiplier, `added_eps` is added to the norm; None means max(norm, 1e-6). `norms` says if
    the norms are those of V or of W.
    """

    values: Any
    rule: str
    added_eps: float | None = None
    norms: str = dora.OF_SUM

    def squared_norms(self, rows: Any, combined: Any, axis: str) -> Any:
        """Return the squares of the dividing norms, of some rows of W and the same of V, which is `combined`.

        Of W there may be None where the norms are those of V.
        """
        return dora.squared_norm(rows if self.norms == dora.OF_BASE else combined, axis)

    def divisors(self, squared_norms: Any) -> Any:
        """Return the dividing norms; NaN, and not an infinity, for a square beyond the range of the type."""
        norm = dora.norm_from_square(squared_norms, self.added_eps)
        return norm.masked_fill(norm.isinf(), math.nan)

    def gains(self, squared_norms: Any, values: Any) -> Any:
        """Return the factors of V."""
        return dora.gain(values, self.divisors(squared_norms))

    def combined(self, change: Change, rows: Any, first: int, multiplier: float) -> tuple[Any, Any]:
        """Return the `rows` of W, and those of V in their place; None for those of W if nothing depends on them."""
        is_kept = self.norms == dora.OF_BASE or self.rule == dora.INTERPOLATE
        before = rows.clone() if is_kept else None
        change.fold(rows, first, dora.inner_multiplier(multiplier, self.rule))
        return before, rows


@dataclass(frozen=True, slots=True)
class _Decomposed(Change):
    """W' = magnitude · V / ‖V‖, or V / ‖W‖, where V is W with the `change` in it."""

    change: Change
    magnitude: MagnitudeValues

    @property
    def together(self) -> int:
        """That of the change."""
        return self.change.together

    @property
    def holds_all(self) -> bool:
        """As the change."""
        return holds_all(self.change)

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Settle the change at the multiplier with which it enters V."""
        inner = dora.inner_multiplier(multiplier, self.magnitude.rule)
        return self._settled(self.change.settled(blocks, inner), blocks, inner)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Scale V by the magnitude over the norm."""
        before, combined = self.magnitude.combined(self.change, rows, first, multiplier)
        gains = self._gains(before, combined, first)
        dora.apply_gain(before, combined, gains, multiplier, self.magnitude.rule)

    def _settled(self, change: Change, blocks: Blocks, inner: float) -> Change:
        """Return this one with its `change` settled, to enter V at the multiplier `inner`."""
        return replace(self, change=change)

    def _gains(self, rows: Any, combined: Any, first: int) -> Any:
        """Return a gain for each row or column of V, which is `combined`; `rows` may be None, as in `combined`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class DecomposedRows(_Decomposed):
    """DoRA over output rows."""

    def values_of(self, other: MagnitudeValues, rows: Any, first: int) -> Any:
        """Return the magnitudes for `other` that, with its own norms, give the same `rows` at multiplier 1."""
        combined = rows.clone()
        self.change.fold(combined, first, 1.0)
        norms = other.divisors(other.squared_norms(rows, combined, dora.OUTPUT))
        return self._gains(rows, combined, first).flatten() * norms

    def _gains(self, rows: Any, combined: Any, first: int) -> Any:
        values = self.magnitude.values[first : first + combined.shape[0]]
        gains = self.magnitude.gains(self.magnitude.squared_norms(rows, combined, dora.OUTPUT), values)
        return gains.reshape(-1, 1)

    def transposed(self) -> Change:
        """Return the change of the transposed weight: rows become columns."""
        return DecomposedColumns(self.change.transposed(), self.magnitude)


@dataclass(frozen=True, slots=True)
class DecomposedColumns(_Decomposed):
    """DoRA over inputs; a convolution has `columns_per_input` neighbouring columns for each input.

    `squares` are the squared norms, over all rows, known once the change has settled.
    """

    columns_per_input: int = 1
    squares: Any = None

    def _settled(self, change: Change, blocks: Blocks, inner: float) -> Change:
        def squares(first: int, rows: Any) -> Any:
            combined = rows.clone()
            change.fold(combined, first, inner)
            return self.magnitude.squared_norms(rows, combined, dora.INPUT)

        per_column = summed(blocks, squares, self.magnitude.values)
        return replace(self, change=change, squares=per_column.reshape(-1, self.columns_per_input).sum(1))

    def _gains(self, rows: Any, combined: Any, first: int) -> Any:
        gains = self.magnitude.gains(self.squares, self.magnitude.values)
        return gains.repeat_interleave(self.columns_per_input).reshape(1, -1)

    def transposed(self) -> Change:
        """Return the change of the transposed weight: columns become rows; a convolution needs all rows at once."""
        if self.columns_per_input > 1:
            return Transposed(self)
        return DecomposedRows(self.change.transposed(), self.magnitude)


def magnitude_of(spelling: dora.DoraSpelling, values: Any, rule: str | None = None) -> MagnitudeValues:
    """Return the `values` with the meaning of the spelling; `rule` replaces its rule for a multiplier."""
    return MagnitudeValues(values, rule or spelling.multiplier, spelling.added_eps, spelling.norms)


def decomposed(change: Change, magnitude: MagnitudeValues, axis: str, columns_per_input: int) -> Change:
    """Return DoRA over the `axis` that the magnitude belongs to."""
    if axis == dora.OUTPUT:
        return DecomposedRows(change, magnitude)
    return DecomposedColumns(change, magnitude, columns_per_input)
