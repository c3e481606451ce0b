"""Entries of a weight that PEFT draws by a seed instead of saving their places, and the weights that fit.

Source: the `FourierFTLayer` and the `WaveFTLayer` of PEFT, which take the first ones of `torch.randperm`.
"""

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from lora_inspect.algorithms.record import Shapes

if TYPE_CHECKING:
    from torch import Tensor

# Of as many numbers `torch.randperm` draws another order since 2025 than before.
MOST_ENTRIES = (2**32 - 1) // 20


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch of a `spectrum` (count,) with a Linear weight of this shape, or None."""
    count = shapes["spectrum"][0]
    if len(weight) < 2 or prod(weight[2:]) != 1 or count > prod(weight):
        return f"changes {count} different entries of the transform of a Linear weight"
    if prod(weight) >= MOST_ENTRIES:
        return f"changes entries that versions of torch draw alike where there are fewer than {MOST_ENTRIES}"
    return None


# Layers of a model have few shapes.
@lru_cache(maxsize=4)
def first_drawn(count: int, entries: int, seed: int) -> "Tensor":
    """Return the first `count` of the numbers below `entries` in the random order of the `seed`.

    The order is that of torch's generator on the CPU. The integer dtype does not change it.
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randperm(entries, generator=generator, dtype=torch.int32, device="cpu")[:count].long()


def drawn_places(count: int, shape: tuple[int, int], seed: int) -> "tuple[Tensor, Tensor]":
    """Return the rows and the columns of the first entries that the seed draws of a matrix of this shape."""
    rows, columns = shape
    entries = first_drawn(count, rows * columns, seed)
    return entries // columns, entries % columns
