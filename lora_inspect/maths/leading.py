"""The first rows and columns of a product whose factors serve weights of several shapes."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Change
from lora_inspect.maths.products import add_product


@dataclass(frozen=True, slots=True)
class Leading(Change):
    """W + multiplier · (up @ down) cut to the shape of W, with up (out or more, rank) and down (rank, in or more)."""

    up: Any
    down: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Adds the product's rows."""
        add_product(rows, self.up[first : first + rows.shape[0]] * multiplier, self.down[:, : rows.shape[1]])

    def transposed(self) -> Change:
        """The factors change places."""
        return Leading(self.down.transpose(0, 1), self.up.transpose(0, 1))
