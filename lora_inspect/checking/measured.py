"""Measurements of a tensor's numbers, read a few million at a time.

This is the one file of `check` that needs numpy.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.stored_numbers import FLOATS, load, stored_pieces
from lora_inspect.progress import Progress

# Products of larger factors are not looked at: they would have to be held as a whole.
_LARGEST_FACTOR = 1 << 27
_LARGEST_RANK = 4096

# The smallest normal number of F16, and the largest.
_NORMAL, _LARGEST = 2.0**-14, 65504.0


class Measured(NamedTuple):
    """Counts of the numbers in a tensor; all are 0 for a type that is no float or is not decoded.

    `numbers` are all, `infinite` NaN and infinities among them, `nonzero` the finite others but 0, `small` those of
    them that F16 holds as subnormal numbers or not at all, `large` those that are beyond it, `negative` those below 0.
    """

    numbers: int = 0
    infinite: int = 0
    nonzero: int = 0
    small: int = 0
    large: int = 0
    negative: int = 0

    @property
    def zeros(self) -> int:
        """The number of zeros."""
        return self.numbers - self.infinite - self.nonzero

    @property
    def is_zero(self) -> bool:
        """True if the tensor has numbers and all of them are 0."""
        return bool(self.numbers) and self.zeros == self.numbers


def measure(info: TensorInfo, progress: Progress) -> Measured:
    """Count the numbers of a whole tensor by kind; `progress` receives the bytes read."""
    total = [0] * len(Measured._fields)
    for values in _values(info, progress):
        magnitudes = numpy.abs(values)
        finite = numpy.isfinite(values)
        counts = (
            values.size,
            values.size - numpy.count_nonzero(finite),
            numpy.count_nonzero(finite & (magnitudes > 0)),
            numpy.count_nonzero(finite & (magnitudes > 0) & (magnitudes < _NORMAL)),
            numpy.count_nonzero(finite & (magnitudes > _LARGEST)),
            numpy.count_nonzero(finite & (values < 0)),
        )
        total = [before + int(count) for before, count in zip(total, counts, strict=True)]
    return Measured(*total)


def product_rms(up: TensorInfo, down: TensorInfo) -> float | None:
    """Return the root mean square of the entries of up @ down, both as matrices; None if they are too large."""
    rank = down.shape[0]
    if rank > _LARGEST_RANK or max(up.numel, down.numel) * 8 > _LARGEST_FACTOR:
        return None
    left, right = _matrix(up), _matrix(down)
    if left is None or right is None:
        return None
    # |U D|² = tr((UᵀU)(D Dᵀ)), which takes no matrix of the layer's size.
    with numpy.errstate(all="ignore"):
        squared = float(((left.T @ left) * (right @ right.T)).sum())
    return math.sqrt(max(squared, 0.0) / (left.shape[0] * right.shape[1])) if math.isfinite(squared) else None


def _matrix(info: TensorInfo) -> Any:
    return load(info).astype(numpy.float64).reshape(info.shape[0], -1) if info.dtype in FLOATS and info.numel else None


def _values(info: TensorInfo, progress: Progress) -> Iterator[Any]:
    """Yield the numbers as float32, or float64 if they are stored so, a chunk at a time."""
    if info.dtype not in (*FLOATS, "C64"):  # a complex one is two numbers
        progress(info.nbytes)
        return
    for size, piece in stored_pieces(info):
        yield piece
        progress(size)
