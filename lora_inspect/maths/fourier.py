"""The real part of a two-dimensional inverse Fourier transform of few real numbers, by blocks of rows."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.products import by_rows


@dataclass(frozen=True, slots=True)
class InverseTransform:
    """Re(ifft2(F)) for a real F (rows, `columns`), of which the one along the rows' axis is taken already.

    Of F and its mirror image (F[u, v] + F[-u, -v]) / 2 the real parts are the same, and the image's transform is real:
    so that half of the columns are enough. `half` is (rows, columns // 2 + 1), complex.
    """

    half: Any
    columns: int

    @classmethod
    def of(cls, values: Any, at: tuple[Any, Any], shape: tuple[int, int]) -> "InverseTransform":
        """F has the `values` (count,) at the rows and columns `at`, of which no two are the same, and is of `shape`."""
        from torch import fft

        rows, columns = shape
        half = values.new_zeros(rows, columns // 2 + 1)
        for sign in (1, -1):
            row, column = (sign * at[0]) % rows, (sign * at[1]) % columns
            inside = column < half.shape[1]
            half.index_put_((row[inside], column[inside]), values[inside] / 2, accumulate=True)
        # Which way round it lies in memory decides how rows of it are transformed.
        return cls(fft.ifft(half, dim=0).contiguous(), columns)

    def __call__(self, first: int, last: int) -> Any:
        """The rows `first` to `last` of the result."""
        from torch import fft

        return by_rows(lambda half: fft.irfft(half, n=self.columns, dim=1), self.half[first:last])
