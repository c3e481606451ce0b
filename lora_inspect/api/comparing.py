"""The verb compare for Python programs."""

import os
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from lora_inspect.algebra.options import CompareRequest, folder_contradiction
from lora_inspect.api.arguments import (
    ChoiceKeywords,
    PathWithSettings,
    WatchProgress,
    all_with_settings,
    in_a_sentence,
    in_keywords,
    logged,
    request_of,
    takes,
    watched,
)
from lora_inspect.files.discovery import files_below, is_collection
from lora_inspect.ops.compare import CompareResult, FolderResult, compare_folder, plan_compare
from lora_inspect.ops.compare import compare as compare_planned

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CompareResult", "FolderResult", "compare"]


class CompareKeywords(ChoiceKeywords, total=False):
    """The keywords of `compare`."""

    max_difference: float | None


@in_a_sentence()
@takes(CompareRequest, CompareKeywords)
def compare(
    adapters: PathWithSettings | Iterable[PathWithSettings],
    *,
    progress: WatchProgress | None = None,
    **options: "Unpack[CompareKeywords]",
) -> CompareResult | FolderResult:
    """Measure how far adapters are from each other, or group those of one folder that are the same change.

    Give two adapters or more as for `merge`: the result has numbers of two, and matrices of more. With
    `max_difference`, `ok` of the result is false if a relative difference is above it; that raises nothing.
    `progress(done, total)` counts modules, and counts again from 0 for each command whose result takes another pass. A
    single path is that of a folder of adapters; its result has `groups`, and files are counted, twice each.

    Raises LoraInspectError if an adapter cannot be read or compared, and ValueError for a single adapter.
    """
    request = request_of(CompareRequest, options)
    named = all_with_settings(adapters)
    if len(named) > 1:
        plan = plan_compare(named, request)
        compared = compare_planned(
            plan,
            watched(progress, len(plan.modules)),
            passes=lambda length: nullcontext(watched(progress, length)),
        )
        return logged(compared)
    ((path, settings),) = named
    if not is_collection(path):
        if not os.path.exists(path):
            plan_compare(named, request)  # which says what is missing
        raise ValueError(f"{path}: one adapter cannot be compared; name another one, or a folder of adapters")
    if wrong := folder_contradiction(request):
        raise ValueError(in_keywords(wrong))
    length = 2 * len(files_below(path).weights) if progress else 0
    return logged(compare_folder(path, settings, request, watched(progress, length)))
