"""FourierFT of PEFT: a change with a Fourier transform that is zero except for the stored numbers.

W' = W + scaling · Re(ifft2(F)) with the numbers of `fourierft_spectrum` in F (out, in). Their places are not stored:
PEFT draws them by the `random_loc_seed` of its `adapter_config.json`, the same for all layers of one shape. It computes
in float32, in its forward as in its merge; here it is the type that weights are folded in, by blocks of rows. PEFT has
no multipliers for it. Sources: Gao et al. 2024, and the `FourierFTLayer` of PEFT 0.21, which draws as 0.14 did.
"""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number, is_seed, read_fields
from lora_inspect.algorithms.drawn_entries import misfit
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.products import by_rows

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the spectrum (count,), or None."""
    spectrum = shapes["spectrum"]
    return (
        f"fourierft_spectrum {list(spectrum)} is not a row of numbers" if len(spectrum) != 1 or 0 in spectrum else None
    )


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the factor and the seed from the config, or an error text if they are unknown."""
    return read_fields(around.config, {"scaling": is_number, "random_loc_seed": is_seed}, "its change")


def change(
    tensors: Tensors,
    scale: float,
    alpha: float | None,
    *,
    scaling: float,
    random_loc_seed: int,
    weight: tuple[int, ...],
) -> "Change":
    """Return the transform of the stored numbers at the entries that the seed draws."""
    from lora_inspect.algorithms.drawn_entries import drawn_places
    from lora_inspect.maths.change import Additive

    spectrum, shape = tensors["spectrum"], (weight[0], prod(weight[1:]))
    at = drawn_places(len(spectrum), shape, random_loc_seed)
    return Additive(InverseTransform.of(spectrum, at, shape), scaling)


ALGORITHM = Algorithm(
    name="fourierft",
    title="FourierFT",
    equation="W + scaling · Re(ifft2(spectrum at drawn places))",
    writers="PEFT",
    dialects={"peft": {"spectrum": ".fourierft_spectrum"}},
    marks=("spectrum",),
    formula=Formula(check, lambda shapes: (None, None), misfit, rank=lambda shapes: None, change=change, sized=True),
    blends=False,
    has_alpha=False,
    peft_type="FOURIERFT",
    settings=settings,
)


@dataclass(frozen=True, slots=True)
class InverseTransform:
    """Re(ifft2(F)) for a real F (rows, `columns`), stored after the transform along the rows' axis.

    F and the mirrored mean (F[u, v] + F[-u, -v]) / 2 have transforms with the same real part, and the transform of the
    mean is real; so half of the columns are enough. `half` is (rows, columns // 2 + 1), complex.
    """

    half: Any
    columns: int

    @classmethod
    def of(cls, values: Any, at: tuple[Any, Any], shape: tuple[int, int]) -> "InverseTransform":
        """Build it from `values` (count,) at the rows and columns `at`, no two the same, of an F of `shape`."""
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
        """Return the rows `first` to `last` of the result."""
        from torch import fft

        return by_rows(lambda half: fft.irfft(half, n=self.columns, dim=1), self.half[first:last])
