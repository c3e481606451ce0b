"""The average of adapters, such as the epochs of one training, written as one adapter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_inspect.algebra.options import AverageRequest
from lora_inspect.algebra.results import AverageResult
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.settings import Settings

if TYPE_CHECKING:
    from lora_inspect.algebra.averages import AveragePlan

# An average is planned and then made: its callers find both here.
__all__ = ["AverageResult", "average", "plan_average", "planned_result"]


def plan_average(
    adapters: Sequence[tuple[str, Settings]], output: str | None, request: AverageRequest
) -> "AveragePlan":
    """Read headers and plan the average; without an `output` it can only be measured.

    Raises LoraInspectError if the weights need unknown steps, or if the adapters have no average.
    """
    from lora_inspect.algebra.averages import plan_average as planned

    return planned(adapters, output, request)


def average(plan: "AveragePlan", force: bool = False, progress: Progress = silent) -> AverageResult:
    """Write the planned average; `progress` counts the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, if it cannot be written as planned.
    """
    from lora_inspect.algebra.averages import write_average

    return write_average(plan, force, progress)


def planned_result(plan: "AveragePlan", progress: Progress = silent) -> AverageResult:
    """Measure the planned average without writing it."""
    from lora_inspect.algebra.averages import average_result

    return average_result(plan, progress)
