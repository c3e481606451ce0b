"""What the shares of the changes in one written weight are computed from, gathered while its blocks of rows go by.

With d_t the change that adapter t makes, after those before it, and e what rounding adds to all of them, so that what
is written is the base + Σ d_t + e, these are sums of products over the entries that are looked at.
"""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple

# What is multiplied at a time: it stays in a cache, and float32 adds it up without losing more than a millionth.
_TOGETHER = 1 << 16

Spans = Sequence[tuple[int, int]]


class KeptSums(NamedTuple):
    """Of k changes, in float64, over the entries that were `looked_at`.

    `products` (k + 1, k + 1) are those of d_1 … d_k and e with each other, `base` is the square of the base.
    """

    products: Tensor
    base: float
    looked_at: int


def both(one: KeptSums | None, other: KeptSums | None) -> KeptSums | None:
    """The sums over both; None is over nothing."""
    if one is None or other is None:
        return one or other
    return KeptSums(one.products + other.products, one.base + other.base, one.looked_at + other.looked_at)


class Look:
    """Looks at some rows of a block of a weight: before, behind each of so many `changes`, and as they are written.

    `spans` are the (start, stop) of those rows in the weight, of which the block begins with the row `first`.
    """

    def __init__(self, spans: Spans, rows: Tensor, first: int, changes: int) -> None:
        self._spans = [(start - first, stop - first) for start, stop in spans]
        count = sum(stop - start for start, stop in spans)
        self._seen = rows.new_empty(changes + 2, count, rows.shape[1])
        self._next = 0
        self.see(rows)

    def see(self, rows: Tensor) -> None:
        """Keeps what the block is now: `rows` begin with the same one."""
        kept, at = self._seen[self._next], 0
        for start, stop in self._spans:
            kept[at : at + stop - start].copy_(rows[start:stop])
            at += stop - start
        self._next += 1

    def sums(self) -> KeptSums:
        """The sums over these rows, once all is seen."""
        seen = self._seen.view(len(self._seen), -1)
        products, base = _products(seen)
        if not (isfinite(base) and products.isfinite().all()):  # squares beyond float32
            products, base = _products(seen.double())
        return KeptSums(products, base, seen.shape[1])


def _products(seen: Tensor) -> tuple[Tensor, float]:
    """Those of the steps from each row to the next with each other, and of the first row with itself."""
    products, base = seen.new_zeros(len(seen) - 1, len(seen) - 1, dtype=torch.float64), 0.0
    memory = seen.new_empty(len(products), min(seen.shape[1], _TOGETHER))
    for begin in range(0, seen.shape[1], _TOGETHER):
        part = seen[:, begin : begin + _TOGETHER]
        steps = torch.sub(part[1:], part[:-1], out=memory[:, : part.shape[1]])
        products += torch.mm(steps, steps.t())
        base += torch.dot(part[0], part[0]).item()
    return products, base
