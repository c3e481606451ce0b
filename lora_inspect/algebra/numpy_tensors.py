"""The factors of a change as arrays of numpy, with the methods of tensors that formulas use.

So these formulas compute where torch is not installed.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import Term
from lora_inspect.algebra.linear.factors import Array
from lora_inspect.errors import DamagedError
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.stored_numbers import FLOATS, load, no_float, not_finite
from lora_inspect.reading.model.contribution import Contribution


class NumpyTensor(numpy.ndarray):
    """An array in float64 that formulas of products of factors accept as a tensor.

    Its methods do the same as those of a `torch.Tensor`. Results of arithmetic are of this class too.
    """

    @classmethod
    def of(cls, values: NDArray[Any]) -> "NumpyTensor":
        """Return the values in float64."""
        return _tensor(numpy.asarray(values, dtype=numpy.float64))

    def transpose(self, first: int, second: int) -> "NumpyTensor":  # type: ignore[override]
        """Return the tensor with two dimensions exchanged."""
        return _tensor(self.swapaxes(first, second))

    def permute(self, *dimensions: int) -> "NumpyTensor":
        """Return the tensor with its dimensions in another order."""
        # `moveaxis` would call `transpose` of this class.
        return _tensor(numpy.asarray(self).transpose(dimensions))

    def flatten(self, first: int = 0) -> "NumpyTensor":  # type: ignore[override]
        """Return the tensor with the dimensions from the `first` on as one."""
        return _tensor(self.reshape(*self.shape[:first], prod(self.shape[first:])))

    def unsqueeze(self, place: int) -> "NumpyTensor":
        """Return the tensor with a dimension of 1 at a place."""
        return _tensor(numpy.expand_dims(self, place))

    def contiguous(self) -> "NumpyTensor":
        """Return the tensor with its rows one behind the other in memory."""
        return _tensor(numpy.ascontiguousarray(self))

    def new_zeros(self, *shape: int) -> "NumpyTensor":
        """Return zeros in a shape."""
        return _tensor(numpy.zeros(shape))

    # Its callers write every number.
    new_empty = new_zeros

    def fill_diagonal_(self, value: float) -> "NumpyTensor":
        """Write the value onto the diagonal."""
        numpy.fill_diagonal(self, value)
        return self

    def add_(self, other: "NumpyTensor") -> "NumpyTensor":
        """Add another tensor in place."""
        self += other
        return self

    def addmm_(self, left: "NumpyTensor", right: "NumpyTensor") -> "NumpyTensor":
        """Add left @ right in place."""
        self += left @ right
        return self

    def copy_(self, other: "NumpyTensor") -> "NumpyTensor":
        """Take the numbers of another tensor."""
        self[...] = other
        return self


def _tensor(values: NDArray[Any]) -> NumpyTensor:
    return values.view(NumpyTensor)


def read_tensors(contribution: Contribution) -> dict[str, NumpyTensor]:
    """Return the tensors of a change by role, for a formula that numpy computes.

    Raises LoraInspectError for one of no floating type, and for a number that is not finite.
    """
    tensors = {role: load_floats(info) for role, info in contribution.operands.items()}
    for role, info in contribution.operands.items():
        check_finite(info, tensors[role])
    return {role: NumpyTensor.of(values) for role, values in tensors.items()}


def load_floats(info: TensorInfo) -> Array:
    """Return the numbers of a factor; LoraInspectError if they are of no floating type."""
    check_floats(info)
    return load(info)


def check_floats(info: TensorInfo) -> None:
    """Raise LoraInspectError for a tensor of no floating type."""
    if info.dtype not in FLOATS:
        raise no_float(info)


def refuse_not_finite(terms: Sequence[Term]) -> None:
    """Raise LoraInspectError for the first factor of the terms that is not finite."""
    for info in (info for term in terms for info in term.contribution.operands.values()):
        if info.dtype in FLOATS:
            check_finite(info, load(info))


def check_finite(info: TensorInfo, values: Array) -> None:
    """Raise LoraInspectError for the first number of a factor that is not finite."""
    if not numpy.isfinite(values).all():
        raise not_finite(info, values[~numpy.isfinite(values)].ravel()[0])


def no_numbers(contribution: Contribution) -> DamagedError:
    """Return the error of a change that is not finite."""
    return DamagedError(
        next(iter(contribution.factors.values())).file,
        f"the change of {contribution.module.key} is not finite, or involves a matrix that cannot be inverted",
        "repair the file that holds such numbers",
    )
