"""A change as a product of two thin factors, D = up @ down, with everything that scales it folded in.

The matrix of a weight is never built: a sum of changes joins their factors, a part of a weight takes rows, and the norm
and the angle of changes come from products of (rank, rank).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy
from numpy.typing import NDArray

from lora_inspect.architectures.rows import Runs

Array = NDArray[numpy.floating[Any]]


@dataclass(frozen=True, slots=True)
class Factors:
    """up (rows, rank) and down (rank, columns) of a change of a weight of `shape`, (out, in, *kernel)."""

    up: Array
    down: Array
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        rows, columns = self.shape[0], prod(self.shape[1:])
        if self.up.shape != (rows, self.rank) or self.down.shape != (self.rank, columns):
            raise ValueError(f"{self.up.shape} and {self.down.shape} are no factors of a weight of {self.shape}")

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return int(self.down.shape[0])

    def scaled(self, factor: float) -> "Factors":
        """The change times a number; the factors stay balanced, and `up` takes the sign."""
        root = abs(factor) ** 0.5
        signed = numpy.copysign(root, factor)
        kind = self.up.dtype.type
        return Factors(self.up * kind(signed), self.down * kind(root), self.shape)

    def in_rows(self, runs: Runs, rows: int) -> "Factors":
        """The change of a weight of so many `rows`, of which each run takes rows of this one; the others stay."""
        up = numpy.zeros((rows, self.rank), self.up.dtype)
        for first, last, source in runs.each():
            up[first:last] = self.up[source : source + last - first]
        return Factors(up, self.down, (rows, *self.shape[1:]))


def joined(changes: Sequence[Factors]) -> Factors:
    """The sum of changes of one weight; ValueError where their shapes differ."""
    shapes = {change.shape for change in changes}
    if len(shapes) != 1:
        raise ValueError(f"changes of weights of {sorted(shapes)} have no sum")
    if len(changes) == 1:
        return changes[0]
    up = numpy.concatenate([change.up for change in changes], axis=1)
    return Factors(up, numpy.concatenate([change.down for change in changes]), shapes.pop())


def inner(one: Factors, other: Factors) -> float:
    """The inner product <one, other> = tr((U1ᵀ U2)(A2 A1ᵀ)) of changes of one weight."""
    return float(numpy.sum((one.up.T @ other.up) * (one.down @ other.down.T)))
