"""Gives an adapter another rank, by one rule for all of its modules."""

from lora_inspect.algebra.inputs import read_inputs
from lora_inspect.algebra.options import ResizeRequest, rank_rule
from lora_inspect.algebra.plan import SumPlan, plan_sum
from lora_inspect.algebra.sum_result import SumResult, plan_result, write_sum
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.settings import Settings

# A new size is planned and then made: its callers find both here.
__all__ = ["SumPlan", "SumResult", "plan_resize", "planned_result", "resize"]

_VERB = "resize"


def plan_resize(adapter: str, settings: Settings, output: str | None, request: ResizeRequest) -> SumPlan:
    """Read headers and plan the output; without an `output` it can be measured alone.

    RS-LoRA stays RS-LoRA. Raises LoraInspectError where the adapter has no settled meaning, or its names cannot have
    the output.
    """
    inputs = read_inputs([(adapter, settings)], request)
    return plan_sum(inputs, output, request, rank_rule(request), is_resized=True)


def resize(plan: SumPlan, force: bool = False, progress: Progress = silent) -> SumResult:
    """Write the planned output; `progress` counts the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, where it cannot be written as planned.
    """
    return write_sum(plan, _VERB, force, progress)


def planned_result(plan: SumPlan, progress: Progress = silent) -> SumResult:
    """Measure the planned output without writing it."""
    return plan_result(plan, _VERB, progress)
