"""The steps of a module of the output: the core of its sum gives the rank; its factors are trimmed and rounded.

A rule that looks at one module at a time takes one pass over the inputs. A size of the whole file takes two: the first
one measures all sums to choose the ranks, and the second one makes the factors. The small matrices of each core are
kept between them, up to a limit. No two modules are in memory longer than it takes to write one.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import Term
from lora_inspect.algebra.changes import beyond, matrix_shape, sum_of, whole_change, written_in
from lora_inspect.algebra.core_merging import (
    MergedWeight,
    MergeFacts,
    MergeRule,
    energy_multiplier,
    merged_vector,
    merged_weight,
    total_facts,
)
from lora_inspect.algebra.experts import ExpertChanges
from lora_inspect.algebra.linear.core import Core, Trim
from lora_inspect.algebra.linear.factors import Array, Factors
from lora_inspect.algebra.linear.module_threads import Workspace, made_in_order
from lora_inspect.algebra.linear.ranks import RankRule, Spectrum
from lora_inspect.algebra.numpy_tensors import refuse_not_finite
from lora_inspect.algebra.output.output_modules import MadeModule, Making, PlannedModule
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.maths.stored_numbers import encoded, encoded_in_place
from lora_inspect.progress import Progress

if TYPE_CHECKING:
    from lora_inspect.algebra.linear.range_finder import Found

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


@dataclass(frozen=True, slots=True)
class MeasuredModule:
    """A module of the output with the singular values of its sum, and the `trim` to all of them, None if not kept.

    `facts` are those of a method.
    """

    module: PlannedModule
    spectrum: Spectrum
    trim: Trim | None
    facts: MergeFacts | None = None

    @property
    def key(self) -> str:
        """The key of the module in the output."""
        return self.module.sum.module.name.key


def made_by_rule(
    modules: Sequence[PlannedModule], rule: RankRule, making: Making, progress: Progress
) -> Iterator[MadeModule]:
    """Yield the modules at the ranks of a rule without a size, in order; `progress` receives 1 for each.

    Raises LoraInspectError for a number that is not finite or beyond the type, and if shapes disagree.
    """

    workspace = Workspace()

    def make(module: PlannedModule) -> MadeModule:
        made = _with_vectors(MadeModule(module), making)
        if not module.shape:
            return made
        if module.is_full:
            matrix = _full_change(module, making)
            is_difference = module.is_difference
            return _difference(made, matrix, making) if is_difference else _found(made, matrix, rule, making)
        if making.merge:
            weight = _merge(module, making.merge)
            spectrum = _merged_spectrum(weight, module, making.dtype)
            return _merged(made, weight, spectrum, rule.rank_of(spectrum, module.of_inputs), making)
        if module.experts:
            experts = ExpertChanges(_at_work(module))
            spectrum = _spectrum_of_experts(experts, module, making.dtype)
            return _trimmed_experts(made, spectrum, rule.rank_of(spectrum, module.of_inputs), experts, making)
        change, core = _core_of(module, making.dtype, workspace)
        spectrum = _spectrum(core, change, making.dtype)
        rank = rule.rank_of(spectrum, module.of_inputs)
        return _trimmed(made, spectrum, rank, change, core.trim(rank) if rank else None, making)

    progress(0)
    for one in made_in_order(make, modules):
        progress(1)
        yield one


def _core_of(module: PlannedModule, dtype: str, workspace: Workspace) -> tuple[Factors, Core]:
    """Return the sum in the type that it is rounded from, and its core in float64."""
    change = _sum_of(module, dtype, workspace)
    try:
        return change, Core(change)
    except FloatingPointError:
        refuse_not_finite(module.sum.terms)
        raise _too_large(module) from None


def _sum_of(module: PlannedModule, dtype: str, workspace: Workspace) -> Factors:
    """Return the sum in the type that it is rounded from."""
    return sum_of(module.sum.terms, numpy.float32 if BITS[dtype] <= _COARSE else numpy.float64, workspace)


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
    """Return the singular values of each module's sum; `progress` receives 1 for each module.

    Raises LoraInspectError for a number that is not finite, and if shapes disagree.
    """

    workspace = Workspace()

    def measure(module: PlannedModule) -> MeasuredModule:
        if not module.shape:
            return MeasuredModule(module, Spectrum(numpy.zeros(0), 0, 1), None, _merge_facts(module, making.merge))
        if module.is_full:
            return MeasuredModule(module, _full_spectrum(_full_change(module, making), module, making.dtype), None)
        if making.merge:
            weight = _merge(module, making.merge)
            facts = _merge_facts(module, making.merge, weight)
            return MeasuredModule(module, _merged_spectrum(weight, module, making.dtype), None, facts)
        if module.experts:
            spectrum = _spectrum_of_experts(ExpertChanges(_at_work(module)), module, making.dtype)
            return MeasuredModule(module, spectrum, None)
        change, core = _core_of(module, making.dtype, workspace)
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
    """Return all singular values of a matrix, the roots of the eigenvalues of its smaller Gram matrix."""
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
    """Yield the modules that were measured at their ranks, in their order.

    Raises LoraInspectError for numbers beyond the type.
    """

    workspace = Workspace()

    def make(asked: tuple[MeasuredModule, int]) -> MadeModule:
        one, rank = asked
        found = _with_vectors(MadeModule(one.module), making)
        if one.module.shape and rank and one.module.is_full:
            return _found(found, _full_change(one.module, making), RankRule(rank=rank), making)
        if making.merge and one.module.shape:
            return _merged(found, _merge(one.module, making.merge), one.spectrum, rank, making)
        if one.module.experts and rank:
            return _trimmed_experts(found, one.spectrum, rank, ExpertChanges(_at_work(one.module)), making)
        change, core = _core_of(one.module, making.dtype, workspace) if rank and not one.trim else (None, None)
        if change is None and rank:
            change = _sum_of(one.module, making.dtype, workspace)
        trim = one.trim.to(rank) if one.trim and rank else core.trim(rank) if core else None
        return _trimmed(found, one.spectrum, rank, change, trim, making)

    for one in made_in_order(make, zip(modules, ranks, strict=True)):
        progress(1)
        yield one


def _full_change(module: PlannedModule, making: Making) -> Array:
    """Return the change of a weight as a matrix (out, in·kernel) in float64."""
    return whole_change(_at_work(module), making.base)


def _at_work(module: PlannedModule) -> list[Term]:
    return [term for term in module.sum.terms if term.multiplier]


def _spectrum_of_experts(experts: ExpertChanges, module: PlannedModule, dtype: str) -> Spectrum:
    return Spectrum(experts.values, experts.rounding_rank, module.experts * _rank_bytes(module.shape, dtype))


def _trimmed_experts(
    one: MadeModule, spectrum: Spectrum, rank: int, experts: ExpertChanges, making: Making
) -> MadeModule:
    """Return the module with the trimmed factors of each expert below each other, and the rounding of all together."""
    return _stacked(one, spectrum, rank, experts.trimmed(rank), making) if spectrum.rounding else one


def _stacked(one: MadeModule, spectrum: Spectrum, rank: int, changes: Sequence[Factors], making: Making) -> MadeModule:
    """Return the module with the factors of the changes of each expert below each other."""
    made = [_rounded(replace(one, rank=rank), factors, making) for factors in changes]
    ups, downs = [one.up for one in made if one.up is not None], [one.down for one in made if one.down is not None]
    return replace(
        made[0],
        up=numpy.stack(ups),
        down=numpy.stack(downs),
        norm=spectrum.norm,
        lost=float(spectrum.tails[rank]),
        rounding=math.hypot(*(m.rounding for m in made)),
        offered=RankRule(energy=OFFERED).rank_of(spectrum),
    )


def _merge(module: PlannedModule, rule: MergeRule) -> MergedWeight:
    try:
        return merged_weight(module.sum.module.name.key, _at_work(module), rule)
    except FloatingPointError:
        refuse_not_finite(module.sum.terms)
        raise _too_large(module) from None


def _merge_facts(
    module: PlannedModule, rule: MergeRule | None, weight: MergedWeight | None = None
) -> MergeFacts | None:
    """Return the numbers of a merged module, of its `weight` and of its other parameters; None without a method."""
    if rule is None:
        return None
    found = [_merged_vector(module, parameter, rule)[1] for parameter in module.vectors]
    if weight:
        found.append(weight.facts(len(weight.values)))
    return total_facts(found) if found else None


def _merged_vector(module: PlannedModule, parameter: str, rule: MergeRule) -> tuple[Array, MergeFacts]:
    return merged_vector(f"{module.sum.module.name.key} {parameter}", module.vectors[parameter], rule)


def _merged_spectrum(weight: MergedWeight, module: PlannedModule, dtype: str) -> Spectrum:
    size = max(1, module.experts) * _rank_bytes(module.shape, dtype)
    return Spectrum(weight.values, int(numpy.count_nonzero(weight.values)), size)


def _merged(one: MadeModule, weight: MergedWeight, spectrum: Spectrum, rank: int, making: Making) -> MadeModule:
    """Return the module with the factors of the change that a method made of its inputs."""
    found = total_facts([one.facts, weight.facts(rank)]) if one.facts else weight.facts(rank)
    made = replace(one, facts=found, norm=spectrum.norm, lost=float(spectrum.tails[rank]))
    if not rank:
        return filled(made, making) if making.common else made
    if one.module.experts:
        return _stacked(made, spectrum, rank, weight.changes(rank), making)
    (change,) = weight.changes(rank)
    return _rounded(replace(made, rank=rank, offered=RankRule(energy=OFFERED).rank_of(spectrum)), change, making)


def calibrated_making(modules: Sequence[PlannedModule], making: Making, progress: Progress) -> Making:
    """Return `making` with the multiplier of `--calibrate energy`; `progress` receives 1 for each module."""
    rule = making.merge
    assert rule
    multiplier = energy_multiplier(merged_facts(modules, rule, progress))
    return replace(making, merge=replace(rule, factor=rule.factor * multiplier))


def merged_facts(modules: Sequence[PlannedModule], rule: MergeRule, progress: Progress) -> list[MergeFacts]:
    """Return the numbers of the modules that a method changes; `progress` receives 1 for each module.

    Raises LoraInspectError for a number that is not finite.
    """

    def facts(module: PlannedModule) -> MergeFacts | None:
        return _merge_facts(module, rule, _merge(module, rule) if module.shape else None)

    progress(0)
    found: list[MergeFacts] = []
    for one in made_in_order(facts, modules):
        progress(1)
        found += [one] if one else []
    return found


def _found(one: MadeModule, matrix: Array, rule: RankRule, making: Making) -> MadeModule:
    """Return the module with the factors that the range finder finds of a full change."""
    from lora_inspect.algebra.linear.range_finder import find_range

    def blocks() -> Iterator[tuple[int, Array]]:
        count = max(1, _BLOCK // matrix.shape[1])
        for first in range(0, len(matrix), count):
            yield first, matrix[first : first + count]

    most = rule.most(min(matrix.shape), one.module.of_inputs or min(matrix.shape))
    seed = _seed_of(one.key)
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
        return filled(made, making)
    return _rounded(replace(made, rank=found.rank), Factors.of(found.up, found.down, one.module.shape), making)


def _trimmed(
    one: MadeModule, spectrum: Spectrum, rank: int, change: Factors | None, trim: Trim | None, making: Making
) -> MadeModule:
    """Return the module with the factors of the trimmed sum."""
    if not spectrum.rounding:  # the changes cancel each other, and the rest is their rounding
        return filled(one, making)
    tails, offered = spectrum.tails, RankRule(energy=OFFERED).rank_of(spectrum)
    made = replace(one, rank=rank, norm=float(tails[0]), lost=float(tails[rank]), offered=offered)
    if change is None or trim is None:
        return filled(made, making) if making.common else made
    meant = trim.of(change)
    found = _stored(made, meant, making)
    lost = change.times(_probes_of(meant)[:, :1]) - found.of_meant[:, :1]
    if not numpy.isfinite(lost).all():
        raise _too_large(one.module)
    _check(made, lost)
    return _with_factors(made, found, making)


def _rounded(one: MadeModule, meant: Factors, making: Making) -> MadeModule:
    """Return the module with these factors in the output's type, and with more directions if its rank is filled."""
    return _with_factors(one, _stored(one, meant, making), making)


def _stored(one: MadeModule, meant: Factors, making: Making) -> "StoredFactors":
    return stored(meant, making.dtype, one.key, _path_of(one.module), one.module.times)


def _with_factors(one: MadeModule, found: "StoredFactors", making: Making) -> MadeModule:
    made = replace(one, up=found.up, down=found.down, rounding=math.hypot(one.rounding, found.rounding))
    return filled(made, making)


class StoredFactors(NamedTuple):
    """Factors as they are written, and the norm of the change's error by that, as random vectors show it.

    `of_meant` (rows, _PROBES) is the product of the change that was meant with these vectors.
    """

    up: NDArray[numpy.generic]
    down: NDArray[numpy.generic]
    rounding: float
    of_meant: Array


def stored(meant: Factors, dtype: str, name: str, path: str, times: int = 1) -> StoredFactors:
    """Return the factors rounded to a type of an output; its programs add the product `times` times.

    `meant` may hold the rounded numbers afterwards. Raises LoraInspectError with the module's name, and the path of an
    input, for numbers beyond the type.
    """
    if times > 1:
        meant = replace(meant, up=meant.up / times, weights=meant.weights * times)
    probes = _probes_of(meant)
    with numpy.errstate(invalid="ignore", over="ignore"):
        of_meant = meant.times(probes)
        up, down = encoded_in_place(meant.up, dtype), encoded_in_place(meant.down, dtype)
        of_written = meant.times(probes)
    # An infinity times a number is none, and so is a sum with it.
    if not numpy.isfinite(of_written).all():
        raise beyond(dtype, name, path)
    lost = (of_meant - of_written).astype(numpy.float64)
    return StoredFactors(up, down, float(numpy.linalg.norm(lost)) / math.sqrt(_PROBES), of_meant)


def filled(one: MadeModule, making: Making) -> MadeModule:
    """Return the module with its rank filled up: columns of up are 0, and rows of down too, or as a training begins.

    A module without a rank has no factors in an output of one rank, but for a single expert, as PEFT needs all of them.
    """
    rows, columns = matrix_shape(one.module.shape)
    rank = making.common or min(making.initial or 0, rows, columns)
    missing = rank - one.rank
    is_left_out = making.common and not one.rank and not one.module.is_single_expert
    if missing <= 0 or is_left_out:
        return one
    new = numpy.zeros((missing, columns)) if making.common else _initial(one.key, missing, columns)
    drawn = encoded(new, making.dtype)
    zeros = encoded(numpy.zeros((rows, missing)), making.dtype)
    down = drawn if one.down is None else numpy.concatenate([one.down, drawn])
    up = zeros if one.up is None else numpy.concatenate([one.up, zeros], axis=1)
    return replace(one, rank=rank, up=up, down=down)


def _initial(key: str, count: int, columns: int) -> Array:
    """Return new rows of a down factor, as trainers draw them: uniform within 1/√columns (He et al. 2015, a = √5)."""
    bound = 1.0 / math.sqrt(columns)
    return numpy.random.default_rng(_seed_of(key)).uniform(-bound, bound, (count, columns))


def _seed_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")


def _path_of(module: PlannedModule) -> str:
    """Return the path of the first input that has the module."""
    terms = [*module.sum.terms, *(term for own in module.vectors.values() for term in own)]
    return terms[0].adapter.checkpoint.path


def _difference(one: MadeModule, matrix: Array, making: Making) -> MadeModule:
    """Return the module with its full change in the type of differences."""
    made = _with_difference(one, "weight", matrix.reshape(one.module.shape), making)
    return replace(made, norm=float(numpy.linalg.norm(matrix)))


def _with_difference(one: MadeModule, parameter: str, values: Array, making: Making) -> MadeModule:
    codes, written = written_in(making.differences, values, one.key, _path_of(one.module))
    rounding = math.hypot(one.rounding, float(numpy.linalg.norm(written - values)))
    return replace(one, differences={**one.differences, parameter: codes}, rounding=rounding)


def _with_vectors(one: MadeModule, making: Making) -> MadeModule:
    """Return the module with the sums of the differences of its other parameters."""
    for parameter, terms in one.module.vectors.items():
        if making.merge:
            values, facts = _merged_vector(one.module, parameter, making.merge)
            one = replace(one, facts=total_facts([one.facts, facts]) if one.facts else facts)
        else:
            values = whole_change(terms, making.base)
        one = _with_difference(one, parameter, values.reshape(one.module.vector_shapes[parameter]), making)
    return one


def _probes_of(change: Factors) -> Array:
    return _probes(change.down.shape[1]).astype(change.down.dtype)


@lru_cache(maxsize=32)
def _probes(columns: int) -> Array:
    """Return random vectors (columns, _PROBES), always the same ones."""
    return numpy.random.default_rng(columns).standard_normal((columns, _PROBES), numpy.float32)


def _check(one: MadeModule, lost: Array) -> None:
    """Raise AssertionError if the trim lost more of the sum than its singular values say, by a random vector v.

    The mean of ‖E v‖² is ‖E‖², where each entry of v has the variance 1. It is 64 times as much once in 10^15 times,
    where E has one direction, and less often where it has more.
    """
    found, most = float(numpy.linalg.norm(lost.astype(numpy.float64))), 8 * one.lost + _OFF * one.norm
    if not found <= most:
        raise AssertionError(f"{one.key}: the trim is off by {found:g}, expected at most {most:g}")
