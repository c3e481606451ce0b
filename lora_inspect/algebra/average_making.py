"""The plan of an average of adapters, and its making: of changes, or of factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from lora_inspect.algebra.alignment import MultipliedAdapter, aligned
from lora_inspect.algebra.averages import steps_of, weights_of
from lora_inspect.algebra.factor_average import averaged_bytes, check_alike, ways_apart
from lora_inspect.algebra.inputs import Inputs, check_experts, read_inputs
from lora_inspect.algebra.linear.ranks import RankRule
from lora_inspect.algebra.options import FACTORS, AverageRequest, rank_rule
from lora_inspect.algebra.output.made_metadata import made_metadata
from lora_inspect.algebra.output.output_modules import FileError
from lora_inspect.algebra.plan import SumPlan, plan_sum, recorded_options
from lora_inspect.algebra.rescaling import RescalingPlan, Rounding, plan_rescaling, planned_copy, write_alike
from lora_inspect.algebra.results import AverageResult, SumResult
from lora_inspect.algebra.sum_making import plan_result, write_sum
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import RefusedError
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.progress import Progress, silent
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
        """How many modules or tensors the progress is told of; modules once more for the difference of both ways."""
        return self.of.steps + (len(self.of.modules) if isinstance(self.of, SumPlan) else 0)


def plan_average(adapters: Sequence[tuple[str, Settings]], output: str | None, request: AverageRequest) -> AveragePlan:
    """Read headers and plan the average; without an `output` it can be measured alone.

    Raises LoraInspectError where the weights need steps that nothing tells, and where the adapters have no average.
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
    check_alike([one.adapter for one in inputs.adapters])
    recorded = {"of": FACTORS, **recorded_options(request, weights)}
    return plan_rescaling(inputs, output, request.dtype, None, recorded)


def write_average(plan: AveragePlan, force: bool = False, progress: Progress = silent) -> AverageResult:
    """Write the planned average; `progress` counts the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, where it cannot be written as planned.
    """
    if isinstance(plan.of, RescalingPlan):
        apart = _factors_apart(plan)
        return _with_weights(_write_factors(plan, plan.of, apart, force, progress), plan, apart)
    apart = ways_apart([one.sum for one in plan.of.modules if one.shape], progress)
    return _with_weights(write_sum(plan.of, _VERB, force, progress), plan, apart)


def _write_factors(
    plan: AveragePlan, of: RescalingPlan, apart: float | None, force: bool, progress: Progress
) -> SumResult:
    """Write the average of factors; its error is its difference from the average of changes."""
    adapters = [one.adapter for one in plan.inputs.adapters]
    others = [adapter.checkpoint.tensors for adapter in adapters[1:]]

    def make(info: TensorInfo, dtype: str, rounding: Rounding) -> memoryview | bytes:
        return averaged_bytes(info, [one[info.name] for one in others], plan.weights, dtype, rounding)

    def metadata(_: Mapping[str, str], record: str) -> dict[str, str]:
        return made_metadata(adapters, record, set(), set(), adapters[0].rslora.value is True)

    return write_alike(of, _VERB, make, metadata, force, progress, apart)


def average_result(plan: AveragePlan, progress: Progress = silent) -> AverageResult:
    """Measure the planned average without writing it."""
    if isinstance(plan.of, RescalingPlan):
        apart = _factors_apart(plan)
        found = replace(planned_copy(plan.of, _VERB), error=apart, energy=FileError(apart).energy)
        return _with_weights(found, plan, apart)
    apart = ways_apart([one.sum for one in plan.of.modules if one.shape], progress)
    return _with_weights(plan_result(plan.of, _VERB, progress), plan, apart)


def _factors_apart(plan: AveragePlan) -> float | None:
    weighted = [
        MultipliedAdapter(one.adapter, dict.fromkeys(one.multipliers, weight))
        for one, weight in zip(plan.inputs.adapters, plan.weights, strict=True)
    ]
    return ways_apart(aligned(weighted, ConvertOptions()), silent)


def _with_weights(found: SumResult, plan: AveragePlan, apart: float | None) -> AverageResult:
    same = {one.name: getattr(found, one.name) for one in fields(SumResult)}
    return AverageResult(**same, steps=plan.steps_of_training, weights=plan.weights, apart=apart)
