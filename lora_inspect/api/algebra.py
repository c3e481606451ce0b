"""The verbs of the adapter algebra for Python programs: combine, resize and average."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_inspect.algebra.options import AverageRequest, CombineRequest, ResizeRequest, contradiction
from lora_inspect.api.arguments import (
    ChoiceKeywords,
    PathWithSettings,
    StrPath,
    WatchProgress,
    all_with_settings,
    in_a_sentence,
    in_keywords,
    logged,
    path_of,
    request_of,
    takes,
    watched,
    with_settings,
)
from lora_inspect.ops.average import AverageResult, plan_average
from lora_inspect.ops.average import average as average_planned
from lora_inspect.ops.average import planned_result as planned_average
from lora_inspect.ops.combine import SumResult, plan_combine
from lora_inspect.ops.combine import combine as combine_planned
from lora_inspect.ops.combine import planned_result as planned_combination
from lora_inspect.ops.resize import plan_resize
from lora_inspect.ops.resize import planned_result as planned_size
from lora_inspect.ops.resize import resize as resize_planned

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = ["AverageResult", "SumResult", "average", "combine", "resize"]


class ResizeKeywords(ChoiceKeywords, total=False):
    """The keywords of `resize`: one rule for the ranks, and the form of the output."""

    rank: int | None
    energy: float | None
    max_error: float | None
    size: int | str | None
    max_rank: int | None
    to: str | None
    model_config: StrPath | None
    dtype: "str | torch.dtype | None"
    allow_growth: bool


class SeveralKeywords(ResizeKeywords, total=False):
    """The keywords of verbs that make one adapter of several."""

    allow_mixed: bool


class CombineKeywords(SeveralKeywords, total=False):
    """The keywords of `combine`."""

    method: str
    density: float | None
    t: float | None
    lambda_: float | None
    calibrate: str | None
    clip_sigma: float | None
    seed: int | None
    drop_biases: bool


class AverageKeywords(SeveralKeywords, total=False):
    """The keywords of `average`."""

    uniform: bool
    beta: float | None
    sigma_rel: float | None
    of: str
    exact: bool


@in_a_sentence()
@takes(CombineRequest, CombineKeywords)
def combine(
    adapters: PathWithSettings | Iterable[PathWithSettings],
    output: StrPath | None,
    *,
    force: bool = False,
    progress: WatchProgress | None = None,
    **options: "Unpack[CombineKeywords]",
) -> SumResult:
    """Write the sum of adapters at their multipliers to `output`, as `combine` does.

    Give the adapters as for `merge`. With None as the output, nothing is written and the result
    describes the planned output: the command line's --dry-run. `progress(done, total)` counts modules.

    Raises LoraInspectError, and writes nothing, if the sum is refused; ValueError for two rules.
    """
    request = request_of(CombineRequest, options)
    if wrong := contradiction(request):
        raise ValueError(in_keywords(wrong))
    plan = plan_combine(all_with_settings(adapters), _named(output), request)
    told = watched(progress, plan.steps)
    return logged(planned_combination(plan, told) if output is None else combine_planned(plan, force, told))


@in_a_sentence()
@takes(ResizeRequest, ResizeKeywords)
def resize(
    adapter: PathWithSettings,
    output: StrPath | None,
    *,
    force: bool = False,
    progress: WatchProgress | None = None,
    **options: "Unpack[ResizeKeywords]",
) -> SumResult:
    """Write the adapter with other ranks to `output`, by one rule, as `resize` does of one adapter.

    With None as the output, nothing is written and the result describes the planned output. `progress(done, total)`
    counts modules.

    Raises LoraInspectError, and writes nothing, if that is refused; ValueError without a rule, and for two.
    """
    request = request_of(ResizeRequest, options)
    if wrong := contradiction(request, needs_rule="resize"):
        raise ValueError(in_keywords(wrong))
    plan = plan_resize(*with_settings(adapter), _named(output), request)
    told = watched(progress, plan.steps)
    return logged(planned_size(plan, told) if output is None else resize_planned(plan, force, told))


@in_a_sentence()
@takes(AverageRequest, AverageKeywords)
def average(
    adapters: Iterable[PathWithSettings],
    output: StrPath | None,
    *,
    force: bool = False,
    progress: WatchProgress | None = None,
    **options: "Unpack[AverageKeywords]",
) -> AverageResult:
    """Write the average of adapters to `output`, as `average` does.

    With None as the output, nothing is written and the result describes the planned output. `progress(done, total)`
    counts modules.

    Raises LoraInspectError, and writes nothing, if that is refused; ValueError for options that exclude each other.
    """
    request = request_of(AverageRequest, options)
    if wrong := contradiction(request):
        raise ValueError(in_keywords(wrong))
    plan = plan_average(all_with_settings(adapters), _named(output), request)
    told = watched(progress, plan.steps)
    return logged(planned_average(plan, told) if output is None else average_planned(plan, force, told))


def _named(output: StrPath | None) -> str | None:
    return None if output is None else path_of(output)
