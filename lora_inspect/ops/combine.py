"""Writes the sum of adapters, each at its multipliers, as one adapter."""

from collections.abc import Sequence

from lora_inspect.algebra.inputs import read_inputs
from lora_inspect.algebra.options import CombineRequest, rank_rule
from lora_inspect.algebra.plan import SumPlan, plan_sum
from lora_inspect.algebra.sum_result import SumResult, plan_result, steps_of, write_sum
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.settings import Settings

# A sum is planned and then made: its callers find both here.
__all__ = ["SumPlan", "SumResult", "combine", "plan_combine", "planned_result", "steps_of"]

_VERB = "combine"


def plan_combine(adapters: Sequence[tuple[str, Settings]], output: str | None, request: CombineRequest) -> SumPlan:
    """Read headers and plan the sum; without an `output` it can be measured alone.

    Raises LoraInspectError where the adapters have no sum, or names cannot have it.
    """
    return plan_sum(read_inputs(adapters, request), output, request, rank_rule(request), is_resized=False)


def combine(plan: SumPlan, force: bool = False, progress: Progress = silent) -> SumResult:
    """Write the planned sum; `progress` counts modules, as `steps_of` says.

    Raises LoraInspectError, and leaves nothing, where it cannot be written as planned.
    """
    return write_sum(plan, _VERB, force, progress)


def planned_result(plan: SumPlan, progress: Progress = silent) -> SumResult:
    """Measure the planned sum without writing it."""
    return plan_result(plan, _VERB, progress)
