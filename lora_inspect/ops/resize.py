"""The change of an adapter's rank, by one rule for all of its modules."""

from typing import TYPE_CHECKING

from lora_inspect.algebra.options import ResizeRequest, rank_rule
from lora_inspect.algebra.results import SumResult
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.settings import Settings

if TYPE_CHECKING:
    from lora_inspect.algebra.plan import SumPlan

# A new size is planned and then made: its callers find both here.
__all__ = ["SumResult", "plan_resize", "planned_result", "resize"]

_VERB = "resize"


def plan_resize(adapter: str, settings: Settings, output: str | None, request: ResizeRequest) -> "SumPlan":
    """Read headers and plan the output; without an `output` it can only be measured.

    RS-LoRA stays RS-LoRA. Raises LoraInspectError if the adapter has no settled meaning, or its names cannot have the
    output.
    """
    from lora_inspect.algebra.inputs import read_inputs
    from lora_inspect.algebra.plan import plan_sum

    inputs = read_inputs([(adapter, settings)], request)
    return plan_sum(inputs, output, request, rank_rule(request), is_resized=True)


def resize(plan: "SumPlan", force: bool = False, progress: Progress = silent) -> SumResult:
    """Write the planned output; `progress` counts the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, if it cannot be written as planned.
    """
    from lora_inspect.algebra.sum_making import write_sum

    return write_sum(plan, _VERB, force, progress)


def planned_result(plan: "SumPlan", progress: Progress = silent) -> SumResult:
    """Measure the planned output without writing it."""
    from lora_inspect.algebra.sum_making import plan_result

    return plan_result(plan, _VERB, progress)
