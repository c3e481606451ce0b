"""Rotations of blocks of rows or columns of a weight, made from skew-symmetric generators. Tensor methods alone.

Sources: Qiu et al. 2023 (OFT) for Cayley's transform, Qiu et al. 2025 (OFTv2) for its Neumann series.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Change
from lora_inspect.maths.products import product


def identity(blocks: Any) -> Any:
    """The identity (size, size) beside matrices (count, size, size)."""
    return blocks.new_ones(blocks.shape[-1]).diag()


def from_upper(entries: Any, size: int) -> Any:
    """Skew-symmetric matrices (count, size, size) from what is above their diagonals (count, size·(size - 1)/2)."""
    upper = entries.new_ones(size, size).triu(1) > 0
    matrices = entries.new_zeros(entries.shape[0], size, size)
    matrices[:, upper] = entries
    return matrices - matrices.transpose(1, 2)


def cayley(skew: Any) -> Any:
    """(I + Q)(I - Q)^-1 of skew-symmetric matrices (count, size, size)."""
    return identity(skew) + turn(skew)


def _solved(matrices: Any, right: Any) -> Any:
    return matrices.inverse() @ right


def turn(skew: Any, solved: Callable[[Any, Any], Any] = _solved) -> Any:
    """R - I for R = `cayley(skew)`, as (I - Q)^-1 2Q, which keeps the digits of a small Q.

    `solved(matrices, right)` is matrices^-1 right; no singular value of the matrices is below 1.
    """
    return solved(identity(skew) - skew, 2.0 * skew)


def neumann(skew: Any, terms: int) -> Any:
    """The first `terms` of I + 2Q + 2Q² + …, which goes towards `cayley`, as PEFT has them.

    The last one, where there are more than two, is counted once and is at least the fourth.
    """
    rotation = identity(skew).expand_as(skew).clone()
    if terms > 1:
        rotation = rotation + 2.0 * skew
    if terms > 2:
        power = skew @ skew
        rotation = rotation + 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            rotation = rotation + 2.0 * power
        rotation = rotation + power @ skew
    return rotation


def limited(skew: Any, most: Any) -> Any:
    """Matrices (count, size, size) shrunk to a Frobenius norm of at most `most` each."""
    norms = skew.square().sum((1, 2), keepdim=True).sqrt()
    return skew * (most / norms.clamp(min=most))


@dataclass(frozen=True, slots=True)
class RotatedRows(Change):
    """Wₖ' = (multiplier · (Rₖ - I) + I)ᵀ Wₖ for each block of rows, and where there is a `gain` each row times its own.

    `blocks` R are (count, size, size), or one for all blocks of rows, `gain` is (out, 1). No multiplier acts on it.
    """

    blocks: Any
    gain: Any = None

    @property
    def together(self) -> int:
        """The rows of a block."""
        size: int = self.blocks.shape[-1]
        return size

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Turns whole blocks."""
        last, size = first + rows.shape[0], self.together
        one = identity(self.blocks)
        own = self.blocks if self.blocks.shape[0] == 1 else self.blocks[first // size : last // size]
        turned = multiplier * (own - one) + one
        result = (turned.transpose(1, 2) @ rows.reshape(-1, size, rows.shape[1])).reshape(rows.shape)
        rows.copy_(result if self.gain is None else result * self.gain[first:last])


@dataclass(frozen=True, slots=True)
class RotatedColumns(Change):
    """W' = W · diag(R₁, R₂, …)ᵀ, and where there is a `gain` (out, 1) each row times its own.

    `blocks` R are (count, size, size), or one for all blocks of columns; a multiplier does not act on the gain.
    """

    blocks: Any
    gain: Any = None
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Turns each row."""
        one = identity(self.blocks)
        turned = multiplier * (self.blocks - one) + one
        by_block = rows.reshape(rows.shape[0], -1, self.blocks.shape[-1]).transpose(0, 1)
        result = product(by_block, turned.transpose(1, 2)).transpose(0, 1).reshape(rows.shape)
        rows.copy_(result if self.gain is None else result * self.gain[first : first + rows.shape[0]])
