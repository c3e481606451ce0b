"""The average of adapters: of their changes, or of their factors as musubi-tuner and other trainers do.

The mean of factors is not the mean of changes: (Σ w B)(Σ w A) has products of one file's B with another one's A. Along
one training they are near. DoRA needs no base for it, as magnitudes are averaged as well.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import MultipliedAdapter, OutputModule, aligned
from lora_inspect.algebra.average_weights import steps_of, weights_of
from lora_inspect.algebra.changes import factors_of, sum_of, thin_rank
from lora_inspect.algebra.inputs import Inputs, check_experts, read_inputs
from lora_inspect.algebra.linear.core import shared_cores
from lora_inspect.algebra.linear.factors import Array, Factors
from lora_inspect.algebra.linear.module_threads import made_in_order
from lora_inspect.algebra.linear.ranks import RankRule
from lora_inspect.algebra.numpy_tensors import check_finite
from lora_inspect.algebra.options import FACTORS, AverageRequest, rank_rule, recorded_options
from lora_inspect.algebra.output.made_metadata import made_metadata
from lora_inspect.algebra.output.numbered_names import check_numbered_layers, numbered_layers, numbered_metadata
from lora_inspect.algebra.output.output_modules import FileError
from lora_inspect.algebra.output.sum_metadata import conflict_notes
from lora_inspect.algebra.plan import SumPlan, plan_sum
from lora_inspect.algebra.rescaling import (
    RescalingPlan,
    Rounding,
    bytes_of_numbers,
    plan_rescaling,
    planned_copy,
    write_alike,
)
from lora_inspect.algebra.results import AverageResult, SumResult
from lora_inspect.algebra.sum_making import plan_result, write_sum
from lora_inspect.algorithms import lora
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import RefusedError
from lora_inspect.files.hashes import are_same_tensors
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import renamed
from lora_inspect.maths.stored_numbers import FLOATS, load
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.settings import Settings

_VERB = "average"


@dataclass(frozen=True, slots=True)
class AveragePlan:
    """The plan of an average of changes, or of factors, with the weight of each file; `steps` are None if unknown."""

    of: SumPlan | RescalingPlan
    inputs: Inputs
    weights: tuple[float, ...]
    steps_of_training: tuple[int, ...] | None

    @property
    def steps(self) -> int:
        """The number of modules or tensors in the progress; modules count once more for the difference of both ways."""
        return self.of.steps + (len(self.of.modules) if isinstance(self.of, SumPlan) else 0)


def plan_average(adapters: Sequence[tuple[str, Settings]], output: str | None, request: AverageRequest) -> AveragePlan:
    """Read headers and plan the average; without an `output` it can only be measured.

    Raises LoraInspectError if the weights need unknown steps, and if the adapters have no average.
    """
    inputs = read_inputs(adapters, request, has_steps=True)
    read = [one.adapter for one in inputs.adapters]
    if len(read) < 2:
        raise RefusedError(read[0].checkpoint.path, "an average is of several files", "name at least two")
    steps = steps_of(read)
    weights = weights_of(read, steps, request)
    told = None if steps is None else tuple(steps)
    if request.of == FACTORS:
        if not request.allow_mixed:
            check_experts(read)
        return AveragePlan(_of_factors(inputs, output, request, weights), inputs, tuple(weights), told)
    rule = rank_rule(request)
    if rule.is_exact and not request.exact:
        rule = RankRule(of_inputs=True)
    plan = plan_sum(inputs, output, request, rule, weights=weights)
    return AveragePlan(plan, inputs, tuple(weights), told)


def _of_factors(inputs: Inputs, output: str | None, request: AverageRequest, weights: Sequence[float]) -> RescalingPlan:
    for one in inputs.adapters:
        if any(multiplier != 1.0 for multiplier in one.multipliers.values()) or one.adapter.settings.part_multipliers:
            raise RefusedError(
                one.adapter.checkpoint.path, "--of factors averages files without multipliers", "leave them out"
            )
    wanted = {"--to": request.to, "--base": request.base, "--dora-multiplier": request.dora_multiplier}
    if named := next((option for option, value in wanted.items() if value is not None), None):
        raise RefusedError(
            inputs.first.checkpoint.path, f"--of factors keeps names and algorithm, so {named} has no effect",
            "leave it out",
        )  # fmt: skip
    adapters = [one.adapter for one in inputs.adapters]
    _check_alike(adapters)
    layers = numbered_layers(adapters[0])
    check_numbered_layers(adapters, layers.values())
    ranks = {layers[one.module.key]: one.known_rank for one in adapters[0].contributions if one.module.key in layers}

    def make_metadata(_: Mapping[str, str], record: str) -> dict[str, str]:
        metadata = made_metadata(adapters, record, set(), set(), adapters[0].rslora.value is True)
        return metadata | numbered_metadata(adapters, ranks)

    recorded = recorded_options(request) | {"weights": list(weights)}
    plan = plan_rescaling(inputs, output, request.dtype, None, recorded, make_metadata)
    return replace(plan, notes=(*plan.notes, *conflict_notes(adapters)))


def write_average(plan: AveragePlan, force: bool = False, progress: Progress = silent) -> AverageResult:
    """Write the planned average; `progress` counts the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, where it cannot be written as planned.
    """
    if isinstance(plan.of, RescalingPlan):
        apart = _factors_apart(plan)
        return _with_weights(_write_factors(plan, plan.of, apart, force, progress), plan, apart)
    apart = _ways_apart([one.sum for one in plan.of.modules if one.shape], progress)
    return _with_weights(write_sum(plan.of, _VERB, force, progress), plan, apart)


def _write_factors(
    plan: AveragePlan, of: RescalingPlan, apart: float | None, force: bool, progress: Progress
) -> SumResult:
    """Write the average of factors; its error is its difference from the average of changes."""
    others = [one.adapter.checkpoint.tensors for one in plan.inputs.adapters[1:]]

    def make(info: TensorInfo, dtype: str, rounding: Rounding) -> memoryview | bytes:
        return _averaged_bytes(info, [one[info.name] for one in others], plan.weights, dtype, rounding)

    return write_alike(of, _VERB, make, force, progress, apart)


def average_result(plan: AveragePlan, progress: Progress = silent) -> AverageResult:
    """Measure the planned average without writing it."""
    if isinstance(plan.of, RescalingPlan):
        apart = _factors_apart(plan)
        found = replace(planned_copy(plan.of, _VERB), error=apart, energy=FileError(apart).energy)
        return _with_weights(found, plan, apart)
    apart = _ways_apart([one.sum for one in plan.of.modules if one.shape], progress)
    return _with_weights(plan_result(plan.of, _VERB, progress), plan, apart)


def _factors_apart(plan: AveragePlan) -> float | None:
    weighted = [
        MultipliedAdapter(one.adapter, dict.fromkeys(one.multipliers, weight))
        for one, weight in zip(plan.inputs.adapters, plan.weights, strict=True)
    ]
    return _ways_apart(aligned(weighted, ConvertOptions()), silent)


def _with_weights(found: SumResult, plan: AveragePlan, apart: float | None) -> AverageResult:
    same = {one.name: getattr(found, one.name) for one in fields(SumResult)}
    return AverageResult(**same, steps=plan.steps_of_training, weights=plan.weights, apart=apart)


def _check_alike(adapters: Sequence[Adapter]) -> None:
    """Raise LoraInspectError if the files have other tensors, scales or algorithms, so that no factors pair up."""
    first = adapters[0]
    ours = {c.module.key: (c.algorithm.name, c.known_scale) for c in first.contributions}
    for other in adapters[1:]:
        tensors, theirs = other.checkpoint.tensors, first.checkpoint.tensors
        wrong = next((key for key in (*tensors, *theirs) if _shape(tensors, key) != _shape(theirs, key)), None)
        if wrong is not None:
            raise _unlike(other, f"{wrong} is {_shape(tensors, wrong)}, but {_shape(theirs, wrong)}", first)
        for contribution in other.contributions:
            found = (contribution.algorithm.name, contribution.known_scale)
            if found != ours.get(contribution.module.key, found):
                key = contribution.module.key
                raise _unlike(other, f"{key} has {_words(found)}, but {_words(ours[key])}", first)


def _shape(tensors: dict[str, TensorInfo], key: str) -> str:
    return str(list(tensors[key].shape)) if key in tensors else "missing"


def _words(found: tuple[str, float]) -> str:
    return f"{found[0]} with scale {found[1]:g}"


def _unlike(other: Adapter, what: str, first: Adapter) -> RefusedError:
    return RefusedError(
        other.checkpoint.path,
        f"{what} in {first.checkpoint.path}, so their factors have no average",
        "leave --of factors out",
    )


def _averaged_bytes(
    info: TensorInfo, others: Sequence[TensorInfo], weights: Sequence[float], dtype: str, rounding: Rounding
) -> memoryview | bytes:
    """Return the bytes of the average of one tensor of each file in a type; whole numbers must be equal.

    Raises LoraInspectError where they are not, and for numbers that are not finite.
    """
    if all(are_same_tensors(info, one) for one in others) and dtype == info.dtype:
        if info.dtype in FLOATS:
            check_finite(info, load(info))
        return b"".join(renamed(info, info.name).chunks())
    if info.dtype not in FLOATS:
        raise RefusedError(info.file, f"{info.name} differs from that in {others[0].file}", "leave --of factors out")
    return bytes_of_numbers(info, _mean(weights, map(load, (info, *others))), dtype, rounding)


def _ways_apart(modules: Sequence[OutputModule], progress: Progress) -> float | None:
    """Return ‖mean of changes - change of mean factors‖ / ‖mean of changes‖ over all modules.

    None where a module has no factors that pair up. The multipliers of the terms are the weights.
    """
    squares = [0.0, 0.0]
    progress(0)
    for found in made_in_order(_apart, modules):
        progress(1)
        if found is None:
            return None
        squares = [total + own for total, own in zip(squares, found, strict=True)]
    return math.sqrt(squares[0] / squares[1]) if squares[1] else None


def _apart(module: OutputModule) -> tuple[float, float] | None:
    """Return the squared norms of the difference and of the mean; None if factors do not pair up or are not finite."""
    contributions = [term.contribution for term in module.terms]
    kinds = {(c.algorithm.name, tuple(c.shapes.items()), c.scale) for c in contributions}
    is_one = len(kinds) == 1 and contributions[0].algorithm.name == lora.ALGORITHM.name
    if not is_one or any(term.moves for term in module.terms) or thin_rank(contributions[0]) is None:
        return None
    read = [factors_of(one) for one in contributions]
    weights = [term.multiplier for term in module.terms]
    up, down = (_mean(weights, parts) for parts in ([one.up for one in read], [one.down for one in read]))
    mean = Factors.of(up, down, read[0].shape, contributions[0].known_scale)
    try:
        of_changes, of_factors = shared_cores([sum_of(module.terms), mean])
    except FloatingPointError:  # the average itself is refused
        return None
    return float(numpy.square(of_changes - of_factors).sum()), float(numpy.square(of_changes).sum())


def _mean(weights: Sequence[float], parts: Iterable[Array]) -> NDArray[numpy.float64]:
    weighted = (weight * part.astype(numpy.float64) for weight, part in zip(weights, parts, strict=True))
    return reduce(numpy.add, weighted)
