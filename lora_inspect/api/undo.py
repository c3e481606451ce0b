"""Adapters out of a merged model again, from Python."""

from collections.abc import Iterable

from lora_inspect.api.arguments import (
    PathWithSettings,
    StrPath,
    WatchProgress,
    all_with_settings,
    path_of,
    watched,
)
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.ops.undo import UndoResult, plan_undo
from lora_inspect.ops.undo import undo as undo_planned

__all__ = ["UndoResult", "undo"]


@in_a_sentence()
def undo(
    merged: StrPath,
    adapters: PathWithSettings | Iterable[PathWithSettings],
    output: StrPath,
    *,
    base: StrPath | None = None,
    accept_unproved: bool = False,
    force: bool = False,
    progress: WatchProgress | None = None,
) -> UndoResult:
    """Takes the adapters of the last merge out of `merged` and writes the result to `output`, as `merge --undo` does.

    With the `base` all is restored; else numbers that are not proved are written where `accept_unproved` says so, and
    the result counts them. `progress(done, total)` is told of bytes.

    Raises LoraInspectError, and writes nothing, for whatever stands in the way.
    """
    plan = plan_undo(path_of(merged), all_with_settings(adapters), None if base is None else path_of(base))
    return undo_planned(plan, path_of(output), force, accept_unproved, watched(progress, plan.bytes))
