"""What the steps of a conversion hand on: one contribution with its factors, on its way into another file.

How large an output may become beside its input, checked before memory is taken.

Factors with a scale multiplied in: in their own dtype where that is exact, and what is lost where it is not.

How large a change is, and what it loses where one of its factors is rounded.

The rows of a module that a module of the output takes, where that is of another layout.

A step that approximates looks at these rows alone: the best product for a fused layer may be a bad one for a part of it
that changes little.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lora_inspect.algorithms.record import Algorithm, Formula, Role, Shapes
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.target_layout import Destination, Source
from lora_inspect.errors import DamagedError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Content, TensorPlan
from lora_inspect.maths.low_rank import SCALED_GRAM, product_norm, relative
from lora_inspect.maths.tensors import TORCH_DTYPES, first_non_finite, load_stored, load_whole, to_bytes
from lora_inspect.reading.model.contribution import Contribution, Magnitude, Module

if TYPE_CHECKING:
    from lora_inspect.converting.steps.base_change import Landed

_TIMES, _FREE_BYTES = 16, 64 << 20


class Growth:
    """Counts the bytes of an output's tensors, and refuses the one that makes it both large and much larger.

    Up to 64 MB, or 16 times the tensors of the input, nothing is said; `allowed` lifts the limit.
    """

    def __init__(self, path: str, input_bytes: int, allowed: bool) -> None:
        self._path = path
        self._input_bytes = input_bytes
        self._limit = math.inf if allowed else max(_TIMES * input_bytes, _FREE_BYTES)
        self._taken = 0

    def take(self, nbytes: int, what: str) -> None:
        """Counts `nbytes` for `what`; raises LoraInspectError where that is too much."""
        self.refuse_more(nbytes, what)
        self._taken += nbytes

    def refuse_more(self, nbytes: int, what: str) -> None:
        """Raises LoraInspectError where `nbytes` more for `what` would be too much."""
        total = self._taken + nbytes
        if total > self._limit:
            raise RefusedError(
                self._path,
                f"with {what} the output would hold {total:,} bytes of tensors, over {_TIMES} times the "
                f"{self._input_bytes:,} of the input",
                "accept that with --allow-growth",
            )


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
        raise DamagedError(
            info.file,
            f"{info.name} is stored as {info.dtype}, but a floating type was expected",
            "fetch the file again",
        )
    stored = load_stored(info, dtype)
    values = stored.float() if info.dtype in _EIGHT_BITS else stored
    if (bad := first_non_finite(values)) is not None:
        raise DamagedError(
            info.file, f"{info.name} holds {bad}, so it changes a weight to what is no number", "fetch the file again"
        )
    return stored


def read_factor(info: TensorInfo) -> Factor:
    """The factor of a file in float64; raises LoraInspectError as `check_finite` does."""
    return Factor(check_finite(info).double(), info.dtype)


def read_operands(contribution: Contribution, dtype: torch.dtype) -> dict[Role, torch.Tensor]:
    """The tensors of its change by role: numbers in `dtype`, whole ones in int64; raises as `read_factor` does."""
    positions = contribution.algorithm.positions
    return {
        role: load_whole(info) if role in positions else read_factor(info).values.to(dtype)
        for role, info in contribution.operands.items()
    }


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
    """`origin` is what was read, and `algorithm` what the factors are of, which a step may have made other ones.

    A factor is a tensor of the input as it stands, or numbers that were computed.

    Readers of the output multiply the change of the factors by `scale`. `alpha` is the number that makes them do so,
    None until a step has found it, or where they need none. `folded` is the scale that is in the factors already.
    `lengths` are the magnitude's numbers where they are other ones than those of the input, or in another order.
    `replaced` says that the factors are other ones, of the same change or of one near it.
    `error` is the share of the change that was lost, in the Frobenius norm, None where nobody can tell; `dropped` are
    keys whose meaning is in no tensor of the output.
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
        """How the change of the factors is computed; raises ValueError for an algorithm that is only recognised."""
        return self.algorithm.formula or self.origin.formula

    @property
    def shapes(self) -> Shapes:
        """The shapes of the factors by role."""
        return {role: factor.shape for role, factor in self.factors.items()}

    @property
    def rank(self) -> int | None:
        """The rank by which readers divide alpha."""
        return self.formula.rank(self.shapes)

    @property
    def file(self) -> str:
        """The input that it is from."""
        return next(iter(self.origin.factors.values())).file


@dataclass(frozen=True, slots=True)
class ModuleParts:
    """A module of the output on its way: the parts `found` in each of its sources and, once these are joined, its own.

    The `carrier` says where readers of its names look for its scale.
    """

    target: Destination
    carrier: str
    found: tuple[Sequence[Part], ...]
    parts: Sequence[Part] = ()

    def each(self, change: Callable[[Source, Sequence[Part]], Sequence[Part]]) -> "ModuleParts":
        """The module with other parts in the place of those of each source."""
        pairs = zip(self.target.sources, self.found, strict=True)
        return replace(self, found=tuple(change(source, parts) for source, parts in pairs))


@dataclass(frozen=True, slots=True)
class Context:
    """What the steps of a conversion know beside the module.

    `landed` are the true changes of modules that a base tells, `remeasured` the modules whose magnitudes will be over
    other norms, `inner` the (in, *kernel) of its weights, and `common` is the alpha that a header says once.
    `dialects` are those of the output's scheme, which writes the algorithms in `instead` as other ones. A step keeps
    in `kept`, under its file's name, what it needs for the next module.
    """

    options: ConvertOptions
    growth: Growth
    landed: "Mapping[str, Landed]"
    remeasured: "Mapping[str, Landed]"
    inner: dict[str, tuple[int, ...]]
    common: float
    dialects: Sequence[str]
    instead: Mapping[str, str]
    kept: dict[str, Any] = field(default_factory=dict)


def read_parts(module: Module) -> list[Part]:
    """The parts of a module as it was read; raises LoraInspectError where a factor of its own is not finite."""
    for contribution in module.contributions:
        for role, info in contribution.operands.items():
            if role not in contribution.algorithm.shared and role not in contribution.algorithm.positions:
                check_finite(info)
    return [Part(c, c.algorithm, c.factors, c.known_scale, c.magnitude) for c in module.contributions]


# Rows of a change that are computed at once.
_ELEMENTS = 1 << 20


def change_norm(formula: Formula, factors: Mapping[Role, torch.Tensor]) -> float:
    """‖change‖ in the Frobenius norm, unscaled, of factors in float64."""
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
    """‖change lost‖ / ‖change‖ where the factor of `role` is `written` in the place of `meant`, all in float64.

    A change is linear in each of its factors: what it loses is the change of the difference.
    """
    lost = change_norm(formula, {**factors, role: written - meant})
    return relative(lost, change_norm(formula, {**factors, role: meant}))


def rows_in_order(runs: Runs) -> torch.Tensor:
    """The row of the module for each row that is taken, in their order there."""
    order = torch.empty(runs.rows, dtype=torch.long, device="cpu")
    for first, last, source in runs.each():
        order[first:last] = torch.arange(source, source + last - first, dtype=torch.long, device="cpu")
    return order


def few_rows(runs: Runs | None, rows: int) -> torch.Tensor | None:
    """The rows of the module that are taken, of so many; None where all of them are."""
    return rows_in_order(runs) if runs and runs.rows < rows else None


def in_rows(factor: torch.Tensor, taken: torch.Tensor, rows: int) -> torch.Tensor:
    """A factor (rows, rank) with the numbers of the rows that were `taken`, and zeros in the others."""
    whole = factor.new_zeros(rows, *factor.shape[1:])
    whole[taken] = factor
    return whole


def thin_rank(formula: Formula, shapes: Mapping[Role, tuple[int, ...]]) -> int | None:
    """The inner size of the product; None where the change is none.

    The factors are tensors of torch's meta device, which have shapes and no numbers.
    """
    if formula.low_rank is None:
        return None
    shadows = {role: torch.empty(shape, dtype=torch.float64, device="meta") for role, shape in shapes.items()}
    found = formula.low_rank(shadows)
    return None if found is None else int(found[1].shape[0])
