"""Outputs of a layer turned and stretched in pairs. Tensor methods alone."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Change


@dataclass(frozen=True, slots=True)
class TurnedPairs(Change):
    """Rows in pairs (x, y), each row becoming `own` times itself and `other` times the other one of its pair.

    x' = own · x - other · y and y' = own · y + other · x, with numbers (out,) of each row's own. In each group of
    `together` rows a row of the first half and the one so far behind it in the second half are a pair. There is no
    multiplier but 1.
    """

    own: Any
    other: Any
    together: int

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Turns whole groups; raises ValueError for a multiplier that means nothing."""
        if multiplier != 1:
            raise ValueError(f"outputs are turned or not, which a multiplier of {multiplier:g} does not say")
        last = first + rows.shape[0]
        halves = rows.reshape(-1, 2, self.together // 2, rows.shape[1])
        swapped = halves.flip(1)
        swapped[:, 0] *= -1
        own, other = self.own[first:last].unsqueeze(1), self.other[first:last].unsqueeze(1)
        rows.copy_(rows * own + swapped.reshape(rows.shape) * other)
