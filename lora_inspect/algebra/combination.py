"""The way of a module of the output: the core of its sum gives the rank, and its factors are trimmed and rounded.

A rule that looks at one module at a time takes one pass over the inputs. A size of the whole file takes two: the first
one measures all sums, of which the ranks follow, and the second one makes the factors. The small matrices of each core
are kept between them, up to a limit. No two modules are in memory longer than it takes to write one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import OutputModule
from lora_inspect.algebra.changes import refuse_not_finite, sum_of
from lora_inspect.algebra.core import Core, Trim
from lora_inspect.algebra.factors import Array, Factors, joined
from lora_inspect.algebra.module_threads import made_in_order
from lora_inspect.algebra.ranks import RankRule, Spectrum
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.maths.stored_numbers import decoded, encoded
from lora_inspect.progress import Progress

# The most bytes of cores that are kept between the passes; the others are computed twice.
_KEPT_BYTES = 256 << 20
# How many random vectors the error of rounding is measured with: its estimate is within some percent of the norm, as
# rounding errors have many directions.
_PROBES = 4
# Numbers of up to this many bits are far coarser than a product in single precision.
_COARSE = 16
# A trim may be off by this share of the sum, the rounding of float32, beyond the tail of its singular values.
_OFF = 1e-4


@dataclass(frozen=True, slots=True)
class MeasuredModule:
    """A module of the output with the singular values of its sum, and the `trim` to all of them, None if not kept."""

    module: OutputModule
    spectrum: Spectrum
    shape: tuple[int, ...]
    trim: Trim | None


class MadeModule(NamedTuple):
    """A module as it is written: up (out, rank) and down (rank, columns), rounded to the type of the output.

    Both are None at rank 0, where nothing is left of the sum. `rounding` is the norm of the change's error that the
    rounding makes, estimated with random vectors.
    """

    module: OutputModule
    spectrum: Spectrum
    shape: tuple[int, ...]
    rank: int
    up: NDArray[numpy.generic] | None = None
    down: NDArray[numpy.generic] | None = None
    rounding: float = 0.0


def made_by_rule(
    modules: Sequence[OutputModule], rule: RankRule, dtype: str, progress: Progress
) -> Iterator[MadeModule]:
    """The modules at the ranks of a rule without a size, in their order; `progress` is told of each module.

    Raises LoraInspectError for a factor that is not finite, for numbers beyond the type, and where shapes disagree.
    """

    def make(module: OutputModule) -> MadeModule:
        change = sum_of(module, _kind(dtype))
        core = _core_of(change, module)
        spectrum = _spectrum(core, change, dtype)
        rank = rule.rank_of(spectrum)
        made = MadeModule(module, spectrum, change.shape, rank)
        return _rounded(made, change, core.trim(rank), dtype) if rank else made

    progress(0)
    for one in made_in_order(make, modules):
        progress(1)
        yield one


def _kind(dtype: str) -> type:
    """The type of the products that are rounded to a type of the output."""
    return numpy.float32 if BITS[dtype] <= _COARSE else numpy.float64


def _core_of(change: Factors, module: OutputModule) -> Core:
    try:
        return Core(joined([change]))
    except FloatingPointError:
        refuse_not_finite(module)
        raise


def _spectrum(core: Core, change: Factors, dtype: str) -> Spectrum:
    rows, columns = change.up.shape[0], change.down.shape[1]
    return Spectrum(core.values, core.rounding_rank, (rows + columns) * BITS[dtype] // 8)


def measured(modules: Sequence[OutputModule], dtype: str, progress: Progress) -> list[MeasuredModule]:
    """The singular values of each module's sum; `progress` is told of each module.

    Raises LoraInspectError for a factor that is not finite, and where shapes disagree.
    """

    def measure(module: OutputModule) -> MeasuredModule:
        change = sum_of(module)
        core = _core_of(change, module)
        return MeasuredModule(module, _spectrum(core, change, dtype), change.shape, core.trim(core.rounding_rank))

    kept, found = 0, []
    progress(0)
    for one in made_in_order(measure, modules):
        size = one.trim.up.nbytes + one.trim.down.nbytes if one.trim else 0
        is_kept = kept + size <= _KEPT_BYTES
        kept += size if is_kept else 0
        found.append(one if is_kept else replace(one, trim=None))
        progress(1)
    return found


def made(
    modules: Sequence[MeasuredModule], ranks: Sequence[int], dtype: str, progress: Progress
) -> Iterator[MadeModule]:
    """The modules that were measured at their ranks, in their order.

    Raises LoraInspectError for numbers beyond the type.
    """

    def make(asked: tuple[MeasuredModule, int]) -> MadeModule:
        one, rank = asked
        found = MadeModule(one.module, one.spectrum, one.shape, rank)
        if not rank:
            return found
        change = sum_of(one.module, _kind(dtype))
        trim = one.trim.to(rank) if one.trim else _core_of(change, one.module).trim(rank)
        return _rounded(found, change, trim, dtype)

    for one in made_in_order(make, zip(modules, ranks, strict=True)):
        progress(1)
        yield one


def _rounded(one: MadeModule, change: Factors, trim: Trim, dtype: str) -> MadeModule:
    """The module with the factors of the trimmed change."""
    name, path = one.module.module.name.key, one.module.terms[0].adapter.checkpoint.path
    meant = trim.of(change)
    found = stored(meant, dtype, name, path)
    _check(one, change.times(_probes(meant.down.shape[1]).astype(meant.down.dtype)) - found.probed)
    return one._replace(up=found.up, down=found.down, rounding=found.rounding)


class StoredFactors(NamedTuple):
    """Factors as they are written, and the norm of the change's error that this makes, as random vectors show it.

    `probed` are the products of the change before with these vectors.
    """

    up: NDArray[numpy.generic]
    down: NDArray[numpy.generic]
    rounding: float
    probed: Array


def stored(meant: Factors, dtype: str, name: str, path: str) -> StoredFactors:
    """The factors rounded to a type of an output; LoraInspectError with the module's name for numbers beyond it."""
    up, down = encoded(meant.up, dtype), encoded(meant.down, dtype)
    written = Factors.of(decoded(dtype, up).reshape(up.shape), decoded(dtype, down).reshape(down.shape), meant.shape)
    probes = _probes(meant.down.shape[1]).astype(meant.down.dtype)
    with numpy.errstate(invalid="ignore"):
        of_meant, of_written = meant.times(probes), written.times(probes)
    # An infinity times a number is none, and so is a sum with it.
    if not numpy.isfinite(of_written).all():
        raise RefusedError(path, f"{name} would hold numbers beyond {dtype}", "give --dtype bf16 or --dtype fp32")
    return StoredFactors(up, down, float(numpy.linalg.norm(of_meant - of_written)) / math.sqrt(_PROBES), of_meant)


@lru_cache(maxsize=32)
def _probes(columns: int) -> Array:
    """Random vectors (columns, _PROBES), always the same ones."""
    return numpy.random.default_rng(columns).standard_normal((columns, _PROBES), numpy.float32)


def _check(one: MadeModule, lost: Array) -> None:
    """Raises AssertionError where the trim lost more of the sum than its singular values say, by random vectors.

    Of vectors of which each entry has the variance 1 the mean of ‖E v‖² is ‖E‖². The mean of four is 16 times as much
    once in a trillion times, where E has one direction, and less often where it has more.
    """
    found = float(numpy.linalg.norm(lost)) / math.sqrt(_PROBES)
    most = 4 * float(one.spectrum.tails[one.rank]) + _OFF * one.spectrum.norm
    if not found <= most:
        raise AssertionError(f"{one.module.module.name.key}: the trim is off by {found:g}, expected at most {most:g}")


def rounding_error(errors: Sequence[float], norms: Sequence[float]) -> float:
    """The relative error that rounding makes in a file, of the norms of its modules' errors and of their changes."""
    whole = math.hypot(*norms)
    return math.hypot(*errors) / whole if whole else 0.0
