"""Passes over a matrix a few rows at a time, where each needs a copy of what it reads."""

import torch
from torch import Tensor

_CACHED = 2**18  # numbers: one float32 megabyte, which stays in a core's cache until it has been reduced
_BUSY = 2**24  # a device with its own memory wants enough work per launch instead


def rows_at_once(columns: int, device: torch.device) -> int:
    """The number of rows of `columns` numbers, at least 1."""
    return max(1, (_CACHED if device.type == "cpu" else _BUSY) // max(1, columns))


def column_products(left: Tensor, right: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Σ left · (right - offset) over the rows, in `dtype`; the products exist a few rows at a time."""
    result = left.new_zeros(left.shape[1], dtype=dtype)
    step = rows_at_once(left.shape[1], left.device)
    for first in range(0, left.shape[0], step):
        values = right[first : first + step].to(dtype)
        if offset is not None:
            values = values - offset.to(dtype)
        result += (values * left[first : first + step].to(dtype)).sum(0)
    return result
