"""A weight of a model, a block of rows at a time, and what its element type makes of numbers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.rounding import GRIDS, ROUNDING, grid_of, rounded, spacing
from lora_inspect.maths.tensors import RowBlocks
from lora_inspect.reading.base.base_codecs import CodedWeight, decoder

# A merge in float32 rounds sums, norms and products on its way; as many roundings of the working type are its own.
_STEPS = 4


class StoredRows(NamedTuple):
    """Rows of a weight as they are stored, `first` the number of the first one.

    `values` (n, columns) are in the working type, `dtype` is the type that they are stored in, and `scale` (n, columns)
    what the codes of that type are multiplied by, None where they are the numbers themselves. Numbers that have no grid
    of their own, as those of four bits, are taken for the numbers of the working type that they are.
    """

    first: int
    values: Tensor
    dtype: str
    scale: Tensor | None = None

    def as_found(self) -> "StoredRows":
        """The rows as those of the coarsest type whose numbers they are, which must be finite."""
        return self._replace(dtype=grid_of(self.values, self.dtype)) if self.dtype in PLAIN_FLOATS else self

    def every(self, step: int) -> "StoredRows":
        """Each `step`th of the rows."""
        return self._replace(
            values=self.values[::step].contiguous(), scale=None if self.scale is None else self.scale[::step]
        )

    def units(self) -> Tensor:
        """The distance between neighbouring numbers at each value."""
        if self.scale is None:
            return spacing(self.values, self.dtype)
        return spacing(self.values / self.scale, self.dtype) * self.scale.abs()

    def noise(self) -> Tensor:
        """The variance that rounding to the type gives each entry, with that of the arithmetic before."""
        working = "F64" if self.values.dtype == torch.float64 else "F32"
        own, arithmetic = self.units(), spacing(self.values, working)
        return own.square_().add_(arithmetic.square_(), alpha=_STEPS).mul_(ROUNDING)

    def rounded(self, wanted: Tensor) -> Tensor:
        """What the same type, with the same scale, makes of other numbers for these rows."""
        if self.scale is None:
            return rounded(wanted, self.dtype)
        return rounded(wanted / self.scale, self.dtype) * self.scale


class StoredWeight(NamedTuple):
    """A weight whose rows are read in blocks by `blocks`; `coded` says how, in the shape in which they are read."""

    info: TensorInfo
    coded: CodedWeight
    blocks: RowBlocks

    def rows(self, together: int = 1) -> Iterator[StoredRows]:
        """All rows in blocks of a multiple of `together`, 0 for all at once; the memory is used again."""
        decode = None if self.info.dtype in PLAIN_FLOATS else decoder(self.coded)
        dtype = self.info.dtype if self.info.dtype in GRIDS else "F32"
        for first, values in self.blocks.read(self.info, together, decode):
            scale = None
            if decode and self.coded.is_decoded and dtype == self.info.dtype:
                scale = torch.ones_like(values)
                decode.rows(scale, first, scale)
            yield StoredRows(first, values, dtype, scale)

    def read(self, together: int = 1) -> Iterator[tuple[int, Tensor]]:
        """(first row, values) of the same blocks."""
        return ((rows.first, rows.values) for rows in self.rows(together))
