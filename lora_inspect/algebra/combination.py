"""The way of a module of the output: its sum is measured, its rank chosen with all others, and its factors are rounded.

The first pass over the factors computes the cores of the sums, which tell every rank and error. The second one makes
the factors that are written, module by module, so that no two modules are in memory longer than it takes to write one.
Between the passes the small matrices of each core are kept, up to a limit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import OutputModule
from lora_inspect.algebra.changes import refuse_not_finite, sum_of
from lora_inspect.algebra.core import Core, Trim
from lora_inspect.algebra.factors import Array, Factors
from lora_inspect.algebra.module_threads import made_in_order
from lora_inspect.algebra.ranks import Spectrum
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
    """The factors of a module as they are written, rounded to the type of the output.

    `rounding` is the norm of the change's error that the rounding makes, estimated with random vectors.
    """

    measured: MeasuredModule
    up: NDArray[numpy.generic]
    down: NDArray[numpy.generic]
    rounding: float


def measured(modules: Sequence[OutputModule], dtype: str, progress: Progress) -> list[MeasuredModule]:
    """The singular values of each module's sum; `progress` is told of each module.

    Raises LoraInspectError for a factor that is not finite, and where shapes disagree.
    """
    kept, found = 0, []
    progress(0)
    for core, shape, module in made_in_order(_core_of, modules):
        trim = core.trim(core.rounding_rank)
        size = trim.up.nbytes + trim.down.nbytes
        is_kept = kept + size <= _KEPT_BYTES
        kept += size if is_kept else 0
        rows, columns = shape[0], math.prod(shape[1:])
        spectrum = Spectrum(core.values, core.rounding_rank, (rows + columns) * BITS[dtype] // 8)
        found.append(MeasuredModule(module, spectrum, shape, trim if is_kept else None))
        progress(1)
    return found


def _core_of(module: OutputModule) -> tuple[Core, tuple[int, ...], OutputModule]:
    change = sum_of(module)
    try:
        return Core(change), change.shape, module
    except FloatingPointError:
        refuse_not_finite(module)
        raise


def made(
    modules: Sequence[MeasuredModule], ranks: Sequence[int], dtype: str, progress: Progress
) -> Iterator[MadeModule]:
    """The factors of each module at its rank, which is not 0, in their order.

    Raises LoraInspectError for numbers beyond the type.
    """

    def make(asked: tuple[MeasuredModule, int]) -> MadeModule:
        return _made(*asked, dtype)

    for one in made_in_order(make, zip(modules, ranks, strict=True)):
        progress(1)
        yield one


def _made(one: MeasuredModule, rank: int, dtype: str) -> MadeModule:
    trim = one.trim
    change = sum_of(one.module, numpy.float32 if trim and BITS[dtype] <= _COARSE else numpy.float64)
    trim = (trim or Core(change).trim(rank)).to(rank)
    meant = trim.of(change)
    up, down = encoded(meant.up, dtype), encoded(meant.down, dtype)
    written = Factors.of(decoded(dtype, up).reshape(up.shape), decoded(dtype, down).reshape(down.shape), meant.shape)
    if not (numpy.isfinite(written.up).all() and numpy.isfinite(written.down).all()):
        term = one.module.terms[0]
        raise RefusedError(
            term.adapter.checkpoint.path,
            f"{one.module.module.name.key} would hold numbers beyond {dtype}",
            "give --dtype bf16 or --dtype fp32",
        )
    probes = _probes(one.module.module.name.key, meant.down.shape[1], meant.down.dtype.type)
    of_meant, of_written = meant.times(probes), written.times(probes)
    _check(one, rank, change.times(probes) - of_meant)
    return MadeModule(one, up, down, float(numpy.linalg.norm(of_meant - of_written)) / math.sqrt(_PROBES))


def _probes(name: str, columns: int, kind: type) -> Array:
    """Random vectors (columns, _PROBES) that the module's name decides."""
    generator = numpy.random.default_rng(crc32(name.encode(errors="surrogatepass")))
    return generator.standard_normal((columns, _PROBES), numpy.float32).astype(kind)


def _check(one: MeasuredModule, rank: int, lost: Array) -> None:
    """Raises AssertionError where the trim lost more of the sum than its singular values say, by random vectors.

    Of vectors of which each entry has the variance 1 the mean of ‖E v‖² is ‖E‖². The mean of four is 16 times as much
    once in a trillion times, where E has one direction, and less often where it has more.
    """
    found = float(numpy.linalg.norm(lost)) / math.sqrt(_PROBES)
    most = 4 * float(one.spectrum.tails[rank]) + _OFF * one.spectrum.norm
    if not found <= most:
        raise AssertionError(f"{one.module.module.name.key}: the trim is off by {found:g}, expected at most {most:g}")


def rounding_error(errors: Sequence[float], norms: Sequence[float]) -> float:
    """The relative error that rounding makes in a file, of the norms of its modules' errors and of their changes."""
    whole = math.hypot(*norms)
    return math.hypot(*errors) / whole if whole else 0.0
