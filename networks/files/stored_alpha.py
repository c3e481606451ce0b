"""The alpha of a module as weights hold it."""

import math

from torch import Tensor

from lora_inspect.maths.scaling import neutral_alpha


def read_alpha(name: str, stored: Tensor | None, rank: int, rslora: bool) -> float:
    """The alpha of a module called `name` in a file; where the file has none, the one that means scale 1.

    Raises ValueError for what is no usable number: programs read a stored 0 differently.
    """
    if stored is None:
        return neutral_alpha(rank, rslora)
    check_single(f"{name}.alpha", stored)
    alpha = float(stored)
    if alpha == 0 or not math.isfinite(alpha):
        raise ValueError(f"{name}.alpha is {alpha:g}, from which no scale follows; store the alpha that was meant")
    return alpha


def read_limit(name: str, stored: Tensor | None) -> float:
    """The alpha of a rotation: the limit of its norm for each output. 0, which a missing one stands for, is none.

    Raises ValueError for what is no finite number.
    """
    if stored is None:
        return 0.0
    check_single(f"{name}.alpha", stored)
    if not math.isfinite(float(stored)):
        raise ValueError(
            f"{name}.alpha is {float(stored):g}, which is no limit of a rotation; store the one that was meant"
        )
    return float(stored)


def check_single(key: str, tensor: Tensor) -> None:
    """Raises ValueError where the tensor called `key` is not one number."""
    if tensor.numel() != 1:
        raise ValueError(f"{key} has shape {list(tensor.shape)}, but a single number was expected")
