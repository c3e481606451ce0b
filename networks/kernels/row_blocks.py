"""How many rows of a matrix to take at a time where a pass over it needs a copy of what it reads."""

import torch

_CACHED = 2**18  # numbers: one float32 megabyte, which stays in a core's cache until it has been reduced
_BUSY = 2**24  # a device with its own memory wants enough work per launch instead


def rows_at_once(columns: int, device: torch.device) -> int:
    """The number of rows of `columns` numbers, at least 1."""
    return max(1, (_CACHED if device.type == "cpu" else _BUSY) // max(1, columns))
