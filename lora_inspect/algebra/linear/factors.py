"""A change as a product of two thin factors, D = up · diag(weights) · down, with all scales in the weights.

The matrix of a weight is never built: a sum of changes joins their factors, and a part of a weight takes rows. Scales
and multipliers stay apart from the factors, which are large and are read as they are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy
from numpy.typing import NDArray

from lora_inspect.architectures.rows import Runs

Array = NDArray[numpy.floating[Any]]


@dataclass(frozen=True, slots=True)
class Factors:
    """up (rows, rank), weights (rank,) and down (rank, columns) for a weight of `shape`, (out, in, *kernel)."""

    up: Array
    weights: Array
    down: Array
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        rows, columns = self.shape[0], prod(self.shape[1:])
        if (self.up.shape, self.weights.shape, self.down.shape) != (
            (rows, self.rank),
            (self.rank,),
            (self.rank, columns),
        ):
            raise ValueError(f"{self.up.shape} and {self.down.shape} are no factors of a weight of {self.shape}")

    @classmethod
    def of(cls, up: Array, down: Array, shape: tuple[int, ...], weight: float = 1.0) -> "Factors":
        """Return the product of two factors, times a number."""
        return cls(up, numpy.full(down.shape[0], weight), down, shape)

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return int(self.down.shape[0])

    def scaled(self, factor: float) -> "Factors":
        """Return the change times a number."""
        return replace(self, weights=self.weights * factor)

    def in_rows(self, runs: Runs, rows: int) -> "Factors":
        """Return the change of a weight of so many `rows`: each run takes rows of this one, the others stay."""
        up = numpy.zeros((rows, self.rank), self.up.dtype)
        for first, last, source in runs.each():
            up[first:last] = self.up[source : source + last - first]
        return replace(self, up=up, shape=(rows, *self.shape[1:]))

    def times(self, vectors: Array) -> Array:
        """Return the product with vectors (columns, count), in the type of the factors."""
        inner = self.down @ vectors
        product: Array = self.up @ (self.weights.astype(inner.dtype)[:, None] * inner)
        return product


def one_size(changes: Sequence[Factors]) -> tuple[int, int]:
    """Return (out, in·kernel) of the one weight that changes are of; ValueError if their sizes differ."""
    sizes = {(change.shape[0], prod(change.shape[1:])) for change in changes}
    if len(sizes) != 1:
        raise ValueError(f"changes of weights of {sorted(sizes)} have no sum")
    return sizes.pop()


def joined(changes: Sequence[Factors], kind: type = numpy.float64) -> Factors:
    """Return the sum of changes of one weight, in float64 or float32; ValueError if their sizes differ.

    For a kernel of ones, or a flattened one, some shapes say more than others: the sum has the most precise one.
    """
    rows, columns = one_size(changes)
    rank = sum(change.rank for change in changes)
    up: Array = numpy.empty((rows, rank), kind)
    down: Array = numpy.empty((rank, columns), kind)
    first = 0
    for change in changes:
        last = first + change.rank
        up[:, first:last], down[first:last] = change.up, change.down
        first = last
    weights = numpy.concatenate([change.weights for change in changes])
    return Factors(up, weights, down, max((change.shape for change in changes), key=len))


def inner(one: Factors, other: Factors) -> float:
    """Return the inner product <one, other> = tr((U1ᵀ U2)(A2 A1ᵀ)) of changes of one weight."""
    ups = one.weights[:, None] * (one.up.T @ other.up) * other.weights
    return float(numpy.sum(ups * (one.down @ other.down.T)))
