"""The parts of a module on their way through a conversion: contributions with their factors.

The file also holds the functions that the steps share. They are for factors with an exact dtype, the norm and the loss
of a change, the rows that a module takes in another layout, and the limit on the size of an output.

A step that approximates must use only the rows that its module takes: the best product for a fused layer may be a bad
one for a part of it that changes little.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lora_inspect.algorithms.record import Algorithm, Formula, Role, Shapes
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.target_layout import Destination, Source
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Content, TensorPlan
from lora_inspect.maths.low_rank import SCALED_GRAM, product_norm, relative
from lora_inspect.maths.stored_numbers import no_float, not_finite
from lora_inspect.maths.tensors import TORCH_DTYPES, first_non_finite, load_stored, load_whole, to_bytes
from lora_inspect.reading.model.contribution import Contribution, Magnitude, Module

if TYPE_CHECKING:
    from lora_inspect.converting.steps.base_change import BaseDependentChange

_EIGHT_BITS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class Factor(NamedTuple):
    """The values of one factor, in float64 for computing, and the dtype that holds each exactly."""

    values: torch.Tensor
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return tuple(self.values.shape)


def check_finite(info: TensorInfo) -> torch.Tensor:
    """Return the stored tensor of a factor.

    Raises LoraInspectError if it has no floating type, or holds a NaN or an infinity.
    """
    dtype = TORCH_DTYPES.get(info.dtype) or _EIGHT_BITS.get(info.dtype)
    if dtype is None:
        raise no_float(info)
    stored = load_stored(info, dtype)
    values = stored.float() if info.dtype in _EIGHT_BITS else stored
    if (bad := first_non_finite(values)) is not None:
        raise not_finite(info, bad)
    return stored


def read_factor(info: TensorInfo) -> Factor:
    """Read a factor in float64; raise LoraInspectError as `check_finite` does."""
    return Factor(check_finite(info).double(), info.dtype)


def read_operands(contribution: Contribution, dtype: torch.dtype) -> dict[Role, torch.Tensor]:
    """Read the tensors of a change by role.

    Numbers are in `dtype`, whole ones in int64. Raises LoraInspectError as `read_factor` does.
    """
    positions = contribution.algorithm.positions
    return {
        role: load_whole(info) if role in positions else read_factor(info).values.to(dtype)
        for role, info in contribution.operands.items()
    }


def as_factor(factor: TensorInfo | Factor) -> Factor:
    """Return the factor in float64, computed before or read from its file."""
    return factor._replace(values=factor.values.double()) if isinstance(factor, Factor) else read_factor(factor)


def scaled(factor: Factor, scale: float) -> Factor:
    """Multiply the factor by `scale`.

    It stays in its own dtype if that holds each product exactly, else `fitting` chooses the dtype.
    """
    if scale == 1.0:
        return factor
    return fitting(factor.values * scale, factor.dtype)


def fitting(values: torch.Tensor, dtype: str) -> Factor:
    """Make a factor of values in float64: in `dtype` if that holds each, else rounded to float32.

    Values of float64 stay. Values beyond float32 become infinities, those below it zeros.
    """
    if dtype in TORCH_DTYPES and torch.equal(rounded(values, dtype), values):
        return Factor(values, dtype)
    wide = "F64" if dtype == "F64" else "F32"
    return Factor(rounded(values, wide), wide)


def joined(factors: list[Factor]) -> str:
    """Return the dtype that holds every value of all the factors."""
    dtypes = {factor.dtype for factor in factors}
    if len(dtypes) == 1:
        return factors[0].dtype
    return "F64" if "F64" in dtypes else "F32"


def zeros(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Make zeros in the memory that `dtype` takes."""
    return torch.zeros(shape, dtype=TORCH_DTYPES.get(dtype) or _EIGHT_BITS[dtype], device="cpu")


def rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Round the values to `dtype`, and return them in float64."""
    return values.to(TORCH_DTYPES[dtype]).double()


def content(name: str, factor: Factor, source: str) -> Content:
    """Make the factor a tensor of the output; raise LoraInspectError for a value beyond its dtype."""
    if factor.dtype in TORCH_DTYPES and (bad := first_non_finite(factor.values)) is not None:
        raise RefusedError(
            source,
            f"{name} would hold {bad}, as the product with its scale is beyond {factor.dtype}",
            "scale the adapter down first",
        )
    plan = TensorPlan(name, factor.dtype, tuple(factor.values.shape))
    if factor.dtype in TORCH_DTYPES:
        return Content(plan, to_bytes(factor.values, factor.dtype))
    stored = factor.values.to(_EIGHT_BITS[factor.dtype]).contiguous()
    return Content(plan, stored.view(torch.uint8).numpy().tobytes())


@dataclass(frozen=True, slots=True)
class Part:
    """One contribution on its way into the output.

    `origin` is the contribution that was read. `algorithm` is that of the factors, which a step may have replaced. A
    factor is an unchanged tensor of the input, or computed numbers.

    Programs multiply the change of the factors by `scale`. `alpha` is the number that makes them do so; it is None
    until a step has found it, or if they need none. `folded` is the scale that the factors already contain. `lengths`
    are the magnitude's numbers if they differ from the input's or are in another order. `replaced` is true for other
    factors of the same change, or of one near it. `error` is the share of the change that was lost, in the Frobenius
    norm; None if it is unknown. `dropped` are keys that no tensor of the output expresses.
    """

    origin: Contribution
    algorithm: Algorithm
    factors: Mapping[Role, TensorInfo | Factor]
    scale: float
    magnitude: Magnitude | None = None
    lengths: Factor | None = None
    alpha: float | None = None
    folded: float = 1.0
    replaced: bool = False
    error: float | None = 0.0
    dropped: tuple[str, ...] = ()

    @property
    def formula(self) -> Formula:
        """The formula of the change; ValueError for an algorithm that is only recognised."""
        return self.algorithm.formula or self.origin.formula

    @property
    def shapes(self) -> Shapes:
        """The shapes of the factors by role."""
        return {role: factor.shape for role, factor in self.factors.items()}

    @property
    def rank(self) -> int | None:
        """The rank by which programs divide alpha."""
        return self.formula.rank(self.shapes)

    @property
    def file(self) -> str:
        """The input that the part comes from."""
        return next(iter(self.origin.factors.values())).file


@dataclass(frozen=True, slots=True)
class ModuleParts:
    """A module of the output on its way: the parts `found` in each source, and then its own.

    `parts` are its own, once a step has joined the sources. `carrier` is the place where programs that read its names
    look for the scale.
    """

    target: Destination
    carrier: str
    found: tuple[Sequence[Part], ...]
    parts: Sequence[Part] = ()

    def each(self, change: Callable[[Source, Sequence[Part]], Sequence[Part]]) -> "ModuleParts":
        """Return the module with changed parts of each source."""
        pairs = zip(self.target.sources, self.found, strict=True)
        return replace(self, found=tuple(change(source, parts) for source, parts in pairs))


@dataclass(frozen=True, slots=True)
class Context:
    """The context of the steps, next to the module.

    `base_changes` are the true changes of modules that depend on a base. `remeasured` are the modules with magnitudes
    that will refer to other norms. `inner` gives the (in, *kernel) of the base's weights. `common` is the alpha that a
    header states once. `dialects` are those of the output's scheme, which writes the algorithms in `instead` as other
    ones. A step keeps in `kept`, under its file's name, data for the next module.
    """

    options: ConvertOptions
    growth: Growth
    base_changes: "Mapping[str, BaseDependentChange]"
    remeasured: "Mapping[str, BaseDependentChange]"
    inner: dict[str, tuple[int, ...]]
    common: float
    dialects: Sequence[str]
    instead: Mapping[str, str]
    kept: dict[str, Any] = field(default_factory=dict)


def read_parts(module: Module) -> list[Part]:
    """Return the parts of a module as read; raise LoraInspectError for a factor that is not finite."""
    for contribution in module.contributions:
        for role, info in contribution.operands.items():
            if role not in contribution.algorithm.shared and role not in contribution.algorithm.positions:
                check_finite(info)
    return [Part(c, c.algorithm, c.factors, c.known_scale, c.magnitude) for c in module.contributions]


# Rows of a change that are computed at once.
_ELEMENTS = 1 << 20


def change_norm(formula: Formula, factors: Mapping[Role, torch.Tensor]) -> float:
    """Compute ‖change‖ in the Frobenius norm, unscaled, of factors in float64."""
    if thin := formula.low_rank and formula.low_rank(factors):
        return float(product_norm(*thin, SCALED_GRAM))
    shape = formula.shape({role: tuple(factor.shape) for role, factor in factors.items()})
    known = [size for size in shape if size is not None]
    rows, columns = known[0], math.prod(known[1:])
    change, squares = formula.change(factors, 1.0, None), 0.0
    count = max(1, _ELEMENTS // max(1, columns))
    for first in range(0, rows, count):
        block = torch.zeros(min(count, rows - first), columns, dtype=torch.float64, device="cpu")
        change.fold(block, first, 1.0)
        squares += float(block.square().sum())
    return math.sqrt(squares)


def lost_share(
    formula: Formula, factors: Mapping[Role, torch.Tensor], role: Role, meant: torch.Tensor, written: torch.Tensor
) -> float:
    """Compute ‖change lost‖ / ‖change‖ if the factor of `role` is `written` instead of `meant`.

    All are in float64. A change is linear in each of its factors: its loss is the change of the difference.
    """
    lost = change_norm(formula, {**factors, role: written - meant})
    return relative(lost, change_norm(formula, {**factors, role: meant}))


def rows_in_order(runs: Runs) -> torch.Tensor:
    """Return the module's row for each row that is taken, in their order there."""
    order = torch.empty(runs.rows, dtype=torch.long, device="cpu")
    for first, last, source in runs.each():
        order[first:last] = torch.arange(source, source + last - first, dtype=torch.long, device="cpu")
    return order


def few_rows(runs: Runs | None, rows: int) -> torch.Tensor | None:
    """Return the module's rows that are taken, of so many; None for all of them."""
    return rows_in_order(runs) if runs and runs.rows < rows else None


def in_rows(factor: torch.Tensor, taken: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a factor (rows, rank) with the numbers of the `taken` rows, and zeros in the others."""
    whole = factor.new_zeros(rows, *factor.shape[1:])
    whole[taken] = factor
    return whole


def thin_rank(formula: Formula, shapes: Mapping[Role, tuple[int, ...]]) -> int | None:
    """Return the inner size of the product; None if the change is no product.

    The factors are tensors of torch's meta device, which have shapes and no numbers.
    """
    if formula.thin:
        return formula.thin(shapes)
    if formula.low_rank is None:
        return None
    shadows = {role: torch.empty(shape, dtype=torch.float64, device="meta") for role, shape in shapes.items()}
    found = formula.low_rank(shadows)
    return None if found is None else int(found[1].shape[0])
