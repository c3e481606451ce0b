"""Folding one contribution into one weight, a block of rows at a time. Tensor methods only."""

import math
from collections.abc import Mapping
from typing import Any

from lora_inspect.files.header import count_elements
from lora_inspect.maths import dora
from lora_inspect.reading.contribution import Contribution


class Fold:
    """A contribution made ready: `up` (out, rank) and `down` (rank, columns), scale and multiplier set.

    `magnitude` is a vector over the output rows or the input columns (`axis`), or None for an additive fold.
    `columns_per_input` is the kernel size of a convolution: so many neighbouring columns share one input.
    `rows` are the rows of the target that the contribution covers (a slice of a fused layer), or None for all;
    `columns` are those that a slice covers where the target is stored as (in, out).
    Where `needs_norm_pass` is true, every block goes through `observe` before the first goes through `apply`.
    """

    def __init__(
        self,
        up: Any,
        down: Any,
        scale: float,
        multiplier: float,
        *,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        magnitude: Any = None,
        axis: str = dora.OUTPUT,
        rule: str = dora.INSIDE,
        added_eps: float | None = None,
        columns_per_input: int = 1,
    ) -> None:
        inner = multiplier if magnitude is None else dora.inner_multiplier(multiplier, rule)
        self.up = up * (scale * inner)
        self.down = down
        self.multiplier = multiplier
        self.first_row = rows[0] if rows else 0
        self.columns = slice(*columns) if columns else slice(None)
        self.magnitude = magnitude
        self.axis = axis
        self.rule = rule
        self.added_eps = added_eps
        self.columns_per_input = columns_per_input
        self.needs_norm_pass = magnitude is not None and axis == dora.INPUT
        self._column_squares: Any = None

    @classmethod
    def of(
        cls, contribution: Contribution, tensors: Mapping[str, Any], multiplier: float, rule: str | None = None
    ) -> "Fold":
        """The fold of a contribution whose scale is known, from its tensors by role (with "magnitude" for DoRA).

        `rule` is the multiplier rule of DoRA; None takes the spelling's own.
        """
        up, down = contribution.formula.flatten(tensors)
        rows, columns = contribution.rows, None
        if contribution.transposed:
            up, down = down.transpose(0, 1).contiguous(), up.transpose(0, 1).contiguous()
            rows, columns = None, rows
        magnitude = contribution.magnitude
        if magnitude is None:
            return cls(up, down, contribution.known_scale, multiplier, rows=rows, columns=columns)
        return cls(
            up,
            down,
            contribution.known_scale,
            multiplier,
            rows=rows,
            columns=columns,
            magnitude=tensors["magnitude"].reshape(-1),
            axis=dora.other_axis(magnitude.axis) if contribution.transposed else magnitude.axis,
            rule=rule or magnitude.spelling.multiplier,
            added_eps=magnitude.spelling.added_eps,
            columns_per_input=count_elements(contribution.shape[2:]),
        )

    def observe(self, block: Any, start: int) -> None:
        """Adds the rows `start`… of the weight, `block` (rows, columns), to the column norms of V."""
        squares = dora.squared_norm(self._combined(block, start), dora.INPUT)
        squares = squares.reshape(-1, self.columns_per_input).sum(1)
        self._column_squares = squares if self._column_squares is None else self._column_squares + squares

    def apply(self, block: Any, start: int) -> None:
        """Folds in place: `block` (rows, columns) holds the rows `start`… of the weight."""
        if self.magnitude is None:
            self._add_delta(block, start)
            return
        combined = self._combined(block, start)
        if self.axis == dora.OUTPUT:
            norm = self._norm(dora.squared_norm(combined, dora.OUTPUT))
            gains = dora.gain(self.magnitude[start : start + block.shape[0]], norm).reshape(-1, 1)
        else:
            norm = self._norm(self._column_squares)
            gains = dora.gain(self.magnitude, norm).repeat_interleave(self.columns_per_input).reshape(1, -1)
        block.copy_(dora.apply_gain(block, combined, gains, self.multiplier, self.rule))

    def _norm(self, squared: Any) -> Any:
        """The norm that divides; NaN, and not a gain of 0, where the square is more than the type can hold."""
        norm = dora.norm_from_square(squared, self.added_eps)
        return norm.masked_fill(norm.isinf(), math.nan)

    def _combined(self, block: Any, start: int) -> Any:
        combined = block.clone()
        self._add_delta(combined, start)
        return combined

    def _add_delta(self, block: Any, start: int) -> None:
        first = max(start, self.first_row)
        last = min(start + block.shape[0], self.first_row + self.up.shape[0])
        if first < last:
            rows = block[first - start : last - start, self.columns]
            rows.addmm_(self.up[first - self.first_row : last - self.first_row], self.down)
