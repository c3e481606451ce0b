"""Entries of a weight that PEFT draws by a seed instead of saving where they are.

Source: the `FourierFTLayer` and the `WaveFTLayer` of PEFT, which take the first ones of `torch.randperm`.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


# Layers of a model have few shapes.
@lru_cache(maxsize=4)
def first_drawn(count: int, entries: int, seed: int) -> "Tensor":
    """The first `count` of the numbers below `entries` in the order of the `seed`.

    The order is that of torch's generator on the CPU, whose type of number makes no difference to it.
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randperm(entries, generator=generator, dtype=torch.int32, device="cpu")[:count].long()


def drawn_places(count: int, shape: tuple[int, int], seed: int) -> "tuple[Tensor, Tensor]":
    """The rows and the columns of the first entries that the seed draws of a matrix of this shape."""
    rows, columns = shape
    entries = first_drawn(count, rows * columns, seed)
    return entries // columns, entries % columns
