"""Factors with a scale multiplied in: in their own dtype where that is exact, and what is lost where it is not."""

import math

import torch

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Content, TensorPlan
from lora_inspect.maths.products import squared_norm
from lora_inspect.maths.tensors import TORCH_DTYPES, first_non_finite, load_stored, to_bytes

_EIGHT_BITS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class Factor(NamedTuple):
    """The values of one factor, in float64 where they are computed with, and the dtype that holds each exactly."""

    values: torch.Tensor
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return tuple(self.values.shape)


def check_finite(info: TensorInfo) -> torch.Tensor:
    """The stored tensor of a factor; raises LoraInspectError where it is no floating one or holds a NaN or infinity."""
    dtype = TORCH_DTYPES.get(info.dtype) or _EIGHT_BITS.get(info.dtype)
    if dtype is None:
        raise LoraInspectError(
            f"{info.file}: {info.name} is stored as {info.dtype}, but a floating type was expected; fetch the file "
            "again."
        )
    stored = load_stored(info, dtype)
    values = stored.float() if info.dtype in _EIGHT_BITS else stored
    if (bad := first_non_finite(values)) is not None:
        raise LoraInspectError(
            f"{info.file}: {info.name} holds {bad}, so it changes a weight to what is no number; fetch the file again."
        )
    return stored


def read_factor(info: TensorInfo) -> Factor:
    """The factor of a file in float64; raises LoraInspectError as `check_finite` does."""
    return Factor(check_finite(info).double(), info.dtype)


def as_factor(factor: TensorInfo | Factor) -> Factor:
    """The factor in float64, read from its file or computed before."""
    return factor._replace(values=factor.values.double()) if isinstance(factor, Factor) else read_factor(factor)


def scaled(factor: Factor, scale: float) -> Factor:
    """`scale` times the factor: in its own dtype where each product is one of its numbers, else as `fitting` says."""
    if scale == 1.0:
        return factor
    return fitting(factor.values * scale, factor.dtype)


def fitting(values: torch.Tensor, dtype: str) -> Factor:
    """Values in float64 as a factor: of `dtype` where each is one of its numbers, else rounded to float32.

    Those of float64 stay. Values beyond float32 become infinities, those below it zeros.
    """
    if dtype in TORCH_DTYPES and torch.equal(rounded(values, dtype), values):
        return Factor(values, dtype)
    wide = "F64" if dtype == "F64" else "F32"
    return Factor(rounded(values, wide), wide)


def joined(factors: list[Factor]) -> str:
    """The dtype that holds every value of all the factors."""
    dtypes = {factor.dtype for factor in factors}
    if len(dtypes) == 1:
        return factors[0].dtype
    return "F64" if "F64" in dtypes else "F32"


def zeros(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Zeros in the memory that `dtype` takes."""
    return torch.zeros(shape, dtype=TORCH_DTYPES.get(dtype) or _EIGHT_BITS[dtype], device="cpu")


def rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """The values as `dtype` keeps them, in float64 again."""
    return values.to(TORCH_DTYPES[dtype]).double()


def content(name: str, factor: Factor, source: str) -> Content:
    """The factor as a tensor of the output; raises LoraInspectError where a value is beyond its dtype."""
    if factor.dtype in TORCH_DTYPES and (bad := first_non_finite(factor.values)) is not None:
        raise LoraInspectError(
            f"{source}: {name} would hold {bad}, as the product with its scale is beyond {factor.dtype}; scale the "
            "adapter down first."
        )
    plan = TensorPlan(name, factor.dtype, tuple(factor.values.shape))
    if factor.dtype in TORCH_DTYPES:
        return Content(plan, to_bytes(factor.values, factor.dtype))
    stored = factor.values.to(_EIGHT_BITS[factor.dtype]).contiguous()
    return Content(plan, stored.view(torch.uint8).numpy().tobytes())


def relative(lost: float, norm: float) -> float:
    """The share of a change of `norm` that is `lost`: all of it where the change cancels itself out to nothing."""
    return lost / norm if norm else float(lost > 0.0)


def product_norm(up: torch.Tensor, down: torch.Tensor) -> float:
    """‖up @ down‖ in the Frobenius norm of two float64 matrices, scaled so that no square leaves float64."""
    largest = [float(matrix.abs().max()) if matrix.numel() else 0.0 for matrix in (up, down)]
    if 0.0 in largest or not all(map(math.isfinite, largest)):
        return 0.0 if 0.0 in largest else math.inf
    squared = float(squared_norm(up / largest[0], down / largest[1]))
    return math.sqrt(squared) * largest[0] * largest[1]
