"""The way of a module of the output: the core of its sum gives the rank, and its factors are trimmed and rounded.

A rule that looks at one module at a time takes one pass over the inputs. A size of the whole file takes two: the first
one measures all sums, of which the ranks follow, and the second one makes the factors. The small matrices of each core
are kept between them, up to a limit. No two modules are in memory longer than it takes to write one.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import OutputModule, Term
from lora_inspect.algebra.changes import change_of, matrix_shape, refuse_not_finite, sum_of
from lora_inspect.algebra.core import Core, Trim
from lora_inspect.algebra.factors import Array, Factors, joined
from lora_inspect.algebra.module_threads import made_in_order
from lora_inspect.algebra.ranks import RankRule, Spectrum
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.maths.stored_numbers import decoded, encoded
from lora_inspect.progress import Progress

if TYPE_CHECKING:
    from lora_inspect.algebra.full_changes import BaseChanges
    from lora_inspect.algebra.range_finder import Found

# The most bytes of cores that are kept between the passes; the others are computed twice.
_KEPT_BYTES = 256 << 20
# How many random vectors the error of rounding is measured with: its estimate is within some percent of the norm, as
# rounding errors have many directions.
_PROBES = 4
# Numbers of up to this many bits are far coarser than a product in single precision.
_COARSE = 16
# A trim may be off by this share of the sum, the rounding of float32, beyond the tail of its singular values.
_OFF = 1e-4
# The share of the energy that is kept by the trim that is offered for an exact sum.
OFFERED = 0.99
# So many numbers of a full change are handed to the range finder at a time.
_BLOCK = 1 << 20


class PlannedModule(NamedTuple):
    """A module of the output: the terms of its weight's change, and those of its other parameters' differences.

    `shape` is (out, in, *kernel) of its weight, empty where that does not change. `is_full` says that the change is no
    product of thin factors, and `is_difference` that it is written as a full difference. `rank` is the most that its
    change can have, and `of_inputs` the largest of one input. `vectors` are the terms by parameter, that of a norm is
    `weight` too, and `vector_shapes` the shapes of these parameters.
    """

    sum: OutputModule
    shape: tuple[int, ...]
    is_full: bool
    is_difference: bool
    rank: int
    of_inputs: int
    vectors: Mapping[str, tuple[Term, ...]]
    vector_shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Making:
    """The choices that hold for all modules: the element types, the base, and whether short ranks are filled.

    `dtype` is that of factors and `differences` that of full differences and vectors. `base` computes changes that
    depend on a weight. `initial` is the rank up to which trained networks begin: rows of down are drawn, up has zeros.
    """

    dtype: str
    differences: str
    base: "BaseChanges | None" = None
    initial: int | None = None


@dataclass(frozen=True, slots=True)
class MeasuredModule:
    """A module of the output with the singular values of its sum, and the `trim` to all of them, None if not kept."""

    module: PlannedModule
    spectrum: Spectrum
    trim: Trim | None

    @property
    def key(self) -> str:
        """The key of the module in the output."""
        return self.module.sum.module.name.key


@dataclass(frozen=True, slots=True)
class MadeModule:
    """A module as it is written: up (out, rank) and down (rank, columns), rounded to the type of the output.

    Both are None at rank 0, where nothing is left of the sum, and where the change is a full difference. `differences`
    are by parameter. `norm` is that of the weight's change, `lost` the norm that the trim loses, and `rounding` the
    norm of the error that the rounding makes, of factors estimated with random vectors. `offered` is the rank that
    keeps the share OFFERED of the energy.
    """

    module: PlannedModule
    rank: int = 0
    up: NDArray[numpy.generic] | None = None
    down: NDArray[numpy.generic] | None = None
    differences: Mapping[str, NDArray[numpy.generic]] = field(default_factory=dict)
    norm: float = 0.0
    lost: float = 0.0
    rounding: float = 0.0
    offered: int = 0

    @property
    def key(self) -> str:
        """The key of the module in the output."""
        return self.module.sum.module.name.key

    @property
    def account(self) -> "ModuleAccount":
        """The facts without the numbers."""
        return ModuleAccount(
            self.key, self.rank, bool(self.differences), self.norm, self.lost, self.rounding, self.offered
        )


class ModuleAccount(NamedTuple):
    """The facts of a made module: its key, its rank, and norms of its change and of the errors, as of MadeModule.

    `has_differences` says that a parameter's difference is written; without that and a rank nothing is.
    """

    key: str
    rank: int
    has_differences: bool
    norm: float
    lost: float
    rounding: float
    offered: int = 0


def made_by_rule(
    modules: Sequence[PlannedModule], rule: RankRule, making: Making, progress: Progress
) -> Iterator[MadeModule]:
    """The modules at the ranks of a rule without a size, in their order; `progress` is told of each module.

    Raises LoraInspectError for a number that is not finite or
    beyond the type, and where shapes disagree.
    """

    def make(module: PlannedModule) -> MadeModule:
        made = _with_vectors(MadeModule(module), making)
        if not module.shape:
            return made
        if module.is_full:
            matrix = _full_change(module, making)
            is_difference = module.is_difference
            return _difference(made, matrix, making) if is_difference else _found(made, matrix, rule, making)
        change, core = _core_of(module, making.dtype)
        spectrum = _spectrum(core, change, making.dtype)
        rank = rule.rank_of(spectrum, module.of_inputs)
        return _trimmed(made, spectrum, rank, change, core.trim(rank) if rank else None, making)

    progress(0)
    for one in made_in_order(make, modules):
        progress(1)
        yield one


def _core_of(module: PlannedModule, dtype: str) -> tuple[Factors, Core]:
    """The sum in the type that it is rounded from, and its core in float64."""
    change = sum_of(module.sum, numpy.float32 if BITS[dtype] <= _COARSE else numpy.float64)
    try:
        return change, Core(joined([change]))
    except FloatingPointError:
        refuse_not_finite(module.sum.terms)
        raise _too_large(module) from None


def _too_large(module: PlannedModule) -> RefusedError:
    return RefusedError(
        module.sum.terms[0].adapter.checkpoint.path,
        f"the products of {module.sum.module.name.key} are beyond the range of numbers",
        "lower the multipliers",
    )


def _spectrum(core: Core, change: Factors, dtype: str) -> Spectrum:
    return Spectrum(core.values, core.rounding_rank, _rank_bytes(change.shape, dtype))


def _rank_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return sum(matrix_shape(shape)) * BITS[dtype] // 8


def measured(modules: Sequence[PlannedModule], making: Making, progress: Progress) -> list[MeasuredModule]:
    """The singular values of each module's sum; `progress` is told of each module.

    Raises LoraInspectError for a number that is not finite, and where shapes disagree.
    """

    def measure(module: PlannedModule) -> MeasuredModule:
        if not module.shape:
            return MeasuredModule(module, Spectrum(numpy.zeros(0), 0, 1), None)
        if module.is_full:
            return MeasuredModule(module, _full_spectrum(_full_change(module, making), module, making.dtype), None)
        change, core = _core_of(module, making.dtype)
        return MeasuredModule(module, _spectrum(core, change, making.dtype), core.trim(core.rounding_rank))

    kept, found = 0, []
    progress(0)
    for one in made_in_order(measure, modules):
        size = one.trim.up.nbytes + one.trim.down.nbytes if one.trim else 0
        is_kept = kept + size <= _KEPT_BYTES
        kept += size if is_kept else 0
        found.append(one if is_kept else replace(one, trim=None))
        progress(1)
    return found


def _full_spectrum(matrix: Array, module: PlannedModule, dtype: str) -> Spectrum:
    """All singular values of a matrix, the roots of the eigenvalues of its smaller Gram matrix."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = wide @ wide.T
    if not numpy.isfinite(gram.diagonal()).all():
        raise _too_large(module)
    values = numpy.sqrt(numpy.maximum(numpy.linalg.eigvalsh(gram)[::-1], 0.0))
    rounding = int(numpy.count_nonzero(values > 1e-7 * values[0])) if values[0] else 0
    return Spectrum(values, rounding, _rank_bytes(module.shape, dtype))


def made(
    modules: Sequence[MeasuredModule], ranks: Sequence[int], making: Making, progress: Progress
) -> Iterator[MadeModule]:
    """The modules that were measured at their ranks, in their order.

    Raises LoraInspectError for numbers beyond the type.
    """

    def make(asked: tuple[MeasuredModule, int]) -> MadeModule:
        one, rank = asked
        found = _with_vectors(MadeModule(one.module), making)
        if one.module.shape and rank and one.module.is_full:
            return _found(found, _full_change(one.module, making), RankRule(rank=rank), making)
        change, core = _core_of(one.module, making.dtype) if rank and not one.trim else (None, None)
        if change is None and rank:
            change = sum_of(one.module.sum, numpy.float32 if BITS[making.dtype] <= _COARSE else numpy.float64)
        trim = one.trim.to(rank) if one.trim and rank else core.trim(rank) if core else None
        return _trimmed(found, one.spectrum, rank, change, trim, making)

    for one in made_in_order(make, zip(modules, ranks, strict=True)):
        progress(1)
        yield one


def _full_change(module: PlannedModule, making: Making) -> Array:
    """The change of a weight as a matrix (out, in·kernel) in float64."""
    return _whole([term for term in module.sum.terms if term.multiplier], making)


def _whole(terms: Sequence[Term], making: Making) -> Array:
    """The sum of terms as a matrix (rows, columns) in float64: the difference of a base, or the sum of differences."""
    if making.base and all(map(making.base.has, terms)):
        return making.base.difference(terms)
    return sum((change_of(term) for term in terms[1:]), change_of(terms[0]))


def _found(one: MadeModule, matrix: Array, rule: RankRule, making: Making) -> MadeModule:
    """The module with the factors that the range finder finds of a full change."""
    from lora_inspect.algebra.range_finder import find_range

    def blocks() -> Iterator[tuple[int, Array]]:
        count = max(1, _BLOCK // matrix.shape[1])
        for first in range(0, len(matrix), count):
            yield first, matrix[first : first + count]

    most = rule.most(min(matrix.shape), one.module.of_inputs or min(matrix.shape))
    seed = int.from_bytes(hashlib.sha256(one.key.encode()).digest()[:8], "little")
    error = rule.largest_error
    try:
        if error is None:
            found = find_range(blocks, matrix.shape, most, seed)
        else:
            found = find_range(blocks, matrix.shape, seed=seed, max_error=error, max_rank=most)
    except ValueError:
        raise _too_large(one.module) from None
    return _of_range(one, found, making)


def _of_range(one: MadeModule, found: "Found", making: Making) -> MadeModule:
    norm = math.sqrt(found.squared_norm)
    made = replace(one, norm=norm, lost=found.relative_error * norm)
    if not found.rank:
        return _initialised(made, making) if making.initial else made
    return _rounded(replace(made, rank=found.rank), Factors.of(found.up, found.down, one.module.shape), making)


def _trimmed(
    one: MadeModule, spectrum: Spectrum, rank: int, change: Factors | None, trim: Trim | None, making: Making
) -> MadeModule:
    """The module with the factors of the trimmed sum."""
    if not spectrum.rounding:  # the changes cancel each other, and the rest is their rounding
        return _initialised(one, making) if making.initial else one
    tails, offered = spectrum.tails, RankRule(energy=OFFERED).rank_of(spectrum)
    made = replace(one, rank=rank, norm=float(tails[0]), lost=float(tails[rank]), offered=offered)
    if change is None or trim is None:
        return made
    meant = trim.of(change)
    written = _rounded(made, meant, making)
    probes = _probes_of(meant)
    lost = change.times(probes) - meant.times(probes)
    if not numpy.isfinite(lost).all():
        raise _too_large(one.module)
    _check(made, lost)
    return written


def _rounded(one: MadeModule, meant: Factors, making: Making) -> MadeModule:
    """The module with these factors in the type of the output, and with initial directions behind them."""
    up, down = encoded(meant.up, making.dtype), encoded(meant.down, making.dtype)
    written = Factors.of(_decoded(up, making.dtype), _decoded(down, making.dtype), meant.shape)
    probes = _probes_of(meant)
    with numpy.errstate(invalid="ignore"):
        of_meant, of_written = meant.times(probes), written.times(probes)
    # An infinity times a number is none, and so is a sum with it.
    if not numpy.isfinite(of_written).all():
        raise _beyond(one.module, making.dtype)
    rounding = float(numpy.linalg.norm((of_meant - of_written).astype(numpy.float64))) / math.sqrt(_PROBES)
    made = replace(one, up=up, down=down, rounding=math.hypot(one.rounding, rounding))
    return _initialised(made, making) if making.initial else made


def _initialised(one: MadeModule, making: Making) -> MadeModule:
    """The module with its rank filled up, as a training begins: new rows of down are drawn, new columns of up are 0."""
    rows, columns = matrix_shape(one.module.shape)
    rank = min(making.initial or 0, rows, columns)
    missing = rank - one.rank
    if missing <= 0:
        return one
    drawn = encoded(_initial(one.key, missing, columns), making.dtype)
    zeros = encoded(numpy.zeros((rows, missing)), making.dtype)
    down = drawn if one.down is None else numpy.concatenate([one.down, drawn])
    up = zeros if one.up is None else numpy.concatenate([one.up, zeros], axis=1)
    return replace(one, rank=rank, up=up, down=down)


def _initial(key: str, count: int, columns: int) -> Array:
    """New rows of a down factor, as trainers draw them: uniform within 1/√columns (He et al. 2015, a = √5)."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    bound = 1.0 / math.sqrt(columns)
    return numpy.random.default_rng(seed).uniform(-bound, bound, (count, columns))


def _beyond(module: PlannedModule, dtype: str) -> RefusedError:
    return RefusedError(
        module.sum.terms[0].adapter.checkpoint.path,
        f"{module.sum.module.name.key} would hold numbers beyond {dtype}",
        "give --dtype bf16 or --dtype fp32",
    )


def _decoded(codes: NDArray[numpy.generic], dtype: str) -> Array:
    return decoded(dtype, codes).reshape(codes.shape)


def _difference(one: MadeModule, matrix: Array, making: Making) -> MadeModule:
    """The module with its full change in the type of differences."""
    made = _with_difference(one, "weight", matrix.reshape(one.module.shape), making)
    return replace(made, norm=float(numpy.linalg.norm(matrix)))


def _with_difference(one: MadeModule, parameter: str, values: Array, making: Making) -> MadeModule:
    codes = encoded(values, making.differences)
    written = _decoded(codes, making.differences)
    if not numpy.isfinite(written).all():
        raise _beyond(one.module, making.differences)
    rounding = math.hypot(one.rounding, float(numpy.linalg.norm(written - values)))
    return replace(one, differences={**one.differences, parameter: codes}, rounding=rounding)


def _with_vectors(one: MadeModule, making: Making) -> MadeModule:
    """The module with the sums of the differences of its other parameters."""
    for parameter, terms in one.module.vectors.items():
        values = _whole(terms, making).reshape(one.module.vector_shapes[parameter])
        one = _with_difference(one, parameter, values, making)
    return one


def _probes_of(change: Factors) -> Array:
    return _probes(change.down.shape[1]).astype(change.down.dtype)


@lru_cache(maxsize=32)
def _probes(columns: int) -> Array:
    """Random vectors (columns, _PROBES), always the same ones."""
    return numpy.random.default_rng(columns).standard_normal((columns, _PROBES), numpy.float32)


def _check(one: MadeModule, lost: Array) -> None:
    """Raises AssertionError where the trim lost more of the sum than its singular values say, by random vectors.

    Of vectors of which each entry has the variance 1 the mean of ‖E v‖² is ‖E‖². The mean of four is 16 times as much
    once in a trillion times, where E has one direction, and less often where it has more.
    """
    found = float(numpy.linalg.norm(lost.astype(numpy.float64))) / math.sqrt(_PROBES)
    most = 4 * one.lost + _OFF * one.norm
    if not found <= most:
        raise AssertionError(f"{one.key}: the trim is off by {found:g}, expected at most {most:g}")


@dataclass(frozen=True, slots=True)
class FileError:
    """The relative errors of a file, of all its weights' changes together: of the trims, and of the rounding.

    `worst` is the error of the trim that is the largest in its module, and `worst_module` that one's key.
    """

    error: float = 0.0
    rounding: float = 0.0
    worst: float = 0.0
    worst_module: str | None = None

    @property
    def energy(self) -> float:
        """The share of the squared norm of all changes that is kept."""
        return 1.0 - self.error**2


def file_error(modules: Iterable[ModuleAccount]) -> FileError:
    """The errors of all modules together."""
    counted = [one for one in modules if one.norm]
    norm = math.hypot(*(one.norm for one in counted))
    if not norm:
        return FileError()
    worst = max(counted, key=lambda one: one.lost / one.norm)
    return FileError(
        math.hypot(*(one.lost for one in counted)) / norm,
        math.hypot(*(one.rounding for one in counted)) / norm,
        worst.lost / worst.norm,
        worst.key,
    )
