"""The sum of adapters, each at its multipliers, written as one adapter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from lora_inspect.algebra.options import CombineRequest, rank_rule, recorded_options
from lora_inspect.algebra.results import SumResult
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.settings import Settings

if TYPE_CHECKING:
    from lora_inspect.algebra.plan import SumPlan
    from lora_inspect.algebra.rescaling import RescalingPlan

# A sum is planned and then made: its callers find both here.
__all__ = ["CombinePlan", "SumResult", "combine", "plan_combine", "planned_result"]

CombinePlan: TypeAlias = "SumPlan | RescalingPlan"
_VERB = "combine"


def plan_combine(adapters: Sequence[tuple[str, Settings]], output: str | None, request: CombineRequest) -> CombinePlan:
    """Read headers and plan the sum; without an `output` it can only be measured.

    One adapter keeps its algorithm without a rule, other names and `drop_biases`. Raises LoraInspectError if the
    adapters have no sum, or names cannot have it.
    """
    from lora_inspect.algebra.inputs import read_inputs
    from lora_inspect.algebra.plan import plan_sum
    from lora_inspect.algebra.rescaling import is_rescalable, plan_rescaling

    inputs, rule = read_inputs(adapters, request), rank_rule(request)
    is_changed = bool(request.to or request.base or request.drop_biases)
    is_kept = request.is_sum and rule.is_exact and not is_changed
    if is_kept and is_rescalable(inputs, request.dora_multiplier):
        return plan_rescaling(inputs, output, request.dtype, request.dora_multiplier, recorded_options(request))
    return plan_sum(inputs, output, request, rule)


def combine(plan: CombinePlan, force: bool = False, progress: Progress = silent) -> SumResult:
    """Write the planned sum; `progress` counts the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, if it cannot be written as planned.
    """
    from lora_inspect.algebra.rescaling import RescalingPlan, rescaled
    from lora_inspect.algebra.sum_making import write_sum

    if isinstance(plan, RescalingPlan):
        return rescaled(plan, _VERB, force, progress)
    return write_sum(plan, _VERB, force, progress)


def planned_result(plan: CombinePlan, progress: Progress = silent) -> SumResult:
    """Measure the planned sum without writing it."""
    from lora_inspect.algebra.rescaling import RescalingPlan, planned_copy
    from lora_inspect.algebra.sum_making import plan_result

    return planned_copy(plan, _VERB) if isinstance(plan, RescalingPlan) else plan_result(plan, _VERB, progress)
