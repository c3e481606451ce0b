"""One level of a two-dimensional inverse wavelet transform of few numbers.

Source: the `get_delta_weight` of PEFT's `WaveFTLayer` and its `waverec2d`, which pass the detail of the columns through
the filter of the rows and the other way round.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_inspect.maths.change import Change
from lora_inspect.maths.entries import Scattered

if TYPE_CHECKING:
    from torch import Tensor


class _Axis:
    """Where the coefficients at positions `at` of an axis of `size` come out, and which of them are details."""

    def __init__(self, at: "Tensor", size: int, taps: int) -> None:
        # The transform is of an even length, and loses what the filter reaches beyond the ends.
        self._size, self._lost = size, taps - 2
        length = size + self._lost + (size + self._lost) % 2
        at = at + (length - size) // 2
        self.is_detail = at >= length // 2
        self._first = 2 * (at % (length // 2)) - self._lost

    def tap(self, number: int) -> "tuple[Tensor, Tensor]":
        """The positions that a tap reaches, and which of them are there."""
        reached = self._first + number
        return reached, (reached >= 0) & (reached < self._size)


def synthesis(
    values: "Tensor", at: "tuple[Tensor, Tensor]", shape: tuple[int, int], lowpass: Sequence[float], scale: float
) -> Change:
    """Adds scale · the inverse transform of the `values` (count,) at the rows and columns `at` of a weight of `shape`.

    The filter `lowpass` is that of the synthesis; the other one has its taps turned round, with alternating signs.
    """
    import torch

    taps = range(len(lowpass))
    highpass = [(-1) ** tap * lowpass[-1 - tap] for tap in taps]
    down, across = _Axis(at[0], shape[0], len(lowpass)), _Axis(at[1], shape[1], len(lowpass))
    rows, columns, parts = [], [], []
    for first in taps:
        row, has_row = down.tap(first)
        along = values.new_tensor([lowpass[first], highpass[first]])[across.is_detail.long()]
        for second in taps:
            column, has_column = across.tap(second)
            other = values.new_tensor([lowpass[second], highpass[second]])[down.is_detail.long()]
            inside = has_row & has_column
            rows.append(row[inside])
            columns.append(column[inside])
            parts.append((values * along * other)[inside])
    return Scattered(torch.cat(rows), torch.cat(columns), torch.cat(parts), scale)
