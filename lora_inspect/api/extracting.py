"""Extraction from Python: the difference of two models as an adapter."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

from lora_inspect.algebra.options import ExtractRequest, contradiction
from lora_inspect.api.arguments import (
    StrPath,
    WatchProgress,
    in_a_sentence,
    in_keywords,
    logged,
    path_of,
    request_of,
    takes,
    watched,
)
from lora_inspect.ops.extract import ExtractResult, plan_extract
from lora_inspect.ops.extract import extract as extract_planned

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = ["ExtractResult", "extract"]


class ExtractKeywords(TypedDict, total=False):
    """The keywords of `extract`."""

    rank: int | None
    energy: float | None
    max_error: float | None
    size: int | str | None
    max_rank: int | None
    to: str | None
    dtype: "str | torch.dtype | None"
    only: str | Iterable[str]
    include: str | Iterable[str]
    exclude: str | Iterable[str]
    weights_only: bool
    architecture: str | None


@in_a_sentence()
@takes(ExtractRequest, ExtractKeywords)
def extract(
    tuned: StrPath,
    base: StrPath,
    output: StrPath | None,
    *,
    force: bool = False,
    progress: WatchProgress | None = None,
    **options: "Unpack[ExtractKeywords]",
) -> ExtractResult:
    """Write the difference of two models to `output` as an adapter, as `extract` does.

    Without an output, None, it computes the same and writes nothing. The other arguments are the options of the command
    line, and one has to decide the ranks. `progress(done, total)` counts modules.

    Raises LoraInspectError, and writes nothing, if the extraction is refused. Raises ValueError for arguments that
    exclude each other, and without a rule for the ranks.
    """
    request = request_of(ExtractRequest, options)
    if wrong := contradiction(request, needs_rule="extract"):
        raise ValueError(in_keywords(wrong))
    plan = plan_extract(path_of(tuned), path_of(base), request, None if output is None else path_of(output))
    return logged(extract_planned(plan, force, output is None, watched(progress, plan.modules)))
