"""The verb report for Python programs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_inspect.algebra.options import ReportRequest
from lora_inspect.api.arguments import (
    PathWithSettings,
    ReadingKeywords,
    StrPath,
    Transposed,
    WatchProgress,
    all_with_settings,
    in_a_sentence,
    logged,
    path_of,
    request_of,
    takes,
    watched,
)
from lora_inspect.ops.report import ReportResult, plan_report
from lora_inspect.ops.report import report as write_planned

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ReportResult", "report"]


class ReportKeywords(ReadingKeywords, total=False):
    """The keywords of `report`."""

    base: StrPath | None
    dora_multiplier: str | None
    transposed: Transposed


@in_a_sentence()
@takes(ReportRequest, ReportKeywords)
def report(
    adapters: PathWithSettings | Iterable[PathWithSettings],
    output: StrPath,
    *,
    force: bool = False,
    progress: WatchProgress | None = None,
    **options: "Unpack[ReportKeywords]",
) -> ReportResult:
    """Write one HTML page on adapters to `output`, as `report` does.

    Several adapters are shown together, at their multipliers. With the model at `base`, sizes are relative to its
    weights, and changes that depend on a weight are shown too. `progress(done, total)` counts bytes.

    Raises LoraInspectError, and writes nothing, if an adapter cannot be read or compared, if the output exists, unless
    `force` is set, and if Jinja is missing.
    """
    request = request_of(ReportRequest, options)
    plan = plan_report(all_with_settings(adapters), request, path_of(output))
    return logged(write_planned(plan, force, watched(progress, plan.steps)))
