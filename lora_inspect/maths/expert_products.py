"""The change of a layer of all experts of a mixture: one product of factors an expert."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Change
from lora_inspect.maths.products import add_product


@dataclass(frozen=True, slots=True)
class ExpertProducts(Change):
    """W_e + multiplier · scale · up_e @ down_e, where expert e has the rows from e·out on of W, (experts·out, columns).

    `up` is (experts, out, rank) and `down` (experts, rank, columns).
    """

    up: Any
    down: Any
    scale: float
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Adds to the rows of each expert those of its product."""
        for expert, begin, end in self._of_experts(first, first + rows.shape[0]):
            start = expert * self.up.shape[1]
            up = self.up[expert, begin - start : end - start]
            add_product(rows[begin - first : end - first], up * (self.scale * multiplier), self.down[expert])

    def _of_experts(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(expert, its first row, the row behind its last one) among the rows `first` to `last`."""
        out = self.up.shape[1]
        for expert in range(first // out, -(-last // out)):
            yield expert, max(first, expert * out), min(last, (expert + 1) * out)
