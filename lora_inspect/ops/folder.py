"""Every adapter below a folder, made into another one at the same place below another folder.

A failed adapter does not stop the others.
"""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import Mirrored, files_of_several, mirrored
from lora_inspect.files.file_types import PICKLE_ENDINGS, of_any_pickle
from lora_inspect.files.outputs import folder_of_outputs
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.file_info import ADAPTER, BASE, FileInfo, inspect_adapter, kind_of
from lora_inspect.reading.model.settings import Settings
from lora_inspect.sentences import counted
from lora_inspect.stores.address import is_remote

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Made]):
    """The outcome for one checkpoint: its result, the reason to skip it, its error, or that it is right as it is."""

    path: str
    target: str = ""
    result: Made | None = None
    skipped: str = ""
    error: Exception | None = None
    is_right: bool = False


def find_in_folder(folder: str, output: str) -> list[Mirrored]:
    """Return all weights below `folder`.

    Raises LoraInspectError if there is none, or a single pickle, or if the output is the folder itself or no folder.
    """
    _check(folder, output)
    found = mirrored(folder, output)
    if not found or (all(one.is_unread for one in found) and not files_of_several(folder)):
        open_checkpoint(folder)  # which says what there is instead
    return found


def find_unread_refusal(folder: str, paths: Sequence[str], unread: Collection[str]) -> RefusedError | None:
    """Return the refusal of a folder if all of its weights, at `paths`, are `unread`: pickles, and models in GGUF."""
    if not paths or any(path not in unread for path in paths):
        return None
    first = next((path for path in paths if path.lower().endswith(PICKLE_ENDINGS)), paths[0])
    try:
        open_checkpoint(first)
    except LoraInspectError as error:
        problem = f"none of its {counted(len(paths), 'weight file')} can be read ({first}: {error.problem})"
        return RefusedError(folder, problem, of_any_pickle(error.fix, first))
    return None


def make_in_folder(
    found: Sequence[Mirrored],
    folder: str,
    output: str,
    settings: Settings,
    ending: Callable[[Adapter], str],
    make: Callable[[Adapter, str], Made],
    progress: Progress,
    is_right: Callable[[Adapter], bool] = lambda adapter: False,
) -> list[Outcome[Made]]:
    """Make something of every adapter that was `found`: `make(adapter, target)` writes it to a path below `output`.

    `ending(adapter)` is that of the target's name. An adapter that `is_right` as it is has none. It calls `progress`
    for each checkpoint. Raises LoraInspectError if readable weights are there, but no adapter.
    """
    outcomes: list[Outcome[Made]] = []
    with folder_of_outputs(output):
        progress(0)
        for one in found:
            outcomes.append(_made(one, output, settings, ending, make, is_right, outcomes))
            progress(1)
    is_readable = any(not one.is_unread for one in found)
    if is_readable and not any(one.result or one.error or one.is_right for one in outcomes):
        raise RefusedError(folder, "it holds no adapter", "name a folder that does")
    return outcomes


def _check(folder: str, output: str) -> None:
    if os.path.lexists(output) and not os.path.isdir(output):
        raise RefusedError(
            output, f"{folder} is a folder of adapters, so the output must be a folder", "choose another"
        )
    if is_remote(folder):
        return
    if os.path.isdir(output) and os.path.samefile(folder, output):
        raise RefusedError(output, "it is the folder of the inputs", "choose another output")
    if os.path.join(os.path.realpath(folder), "").startswith(os.path.join(os.path.realpath(output), "")):
        raise RefusedError(output, "the folder of the inputs is in it", "choose another output")


def _made(
    one: Mirrored,
    output: str,
    settings: Settings,
    ending: Callable[[Adapter], str],
    make: Callable[[Adapter, str], Made],
    is_right: Callable[[Adapter], bool],
    before: list[Outcome[Made]],
) -> Outcome[Made]:
    try:
        checkpoint = open_checkpoint(one.path)
        kind, adapter = kind_of(read_adapter(checkpoint, settings))
        if kind != ADAPTER:
            return Outcome(one.path, skipped=_what_it_is(inspect_adapter(checkpoint, settings)))
        if is_right(adapter):
            return Outcome(one.path, is_right=True)
        target = os.path.join(output, one.stem + ending(adapter))
        if taken := next((done.path for done in before if done.result and done.target == target), None):
            raise RefusedError(one.path, f"{taken} already goes to {target}", "rename one of them")
        with folder_of_outputs(os.path.dirname(target)):
            return Outcome(one.path, target, make(adapter, target))
    except Exception as error:  # one file that fails leaves the others their outputs
        if one.is_unread and isinstance(error, RefusedError):
            return Outcome(one.path, skipped=error.problem)
        return Outcome(one.path, error=error)


def _what_it_is(info: FileInfo) -> str:
    """Name the kind of a file without an adapter."""
    if info.other_model:
        return f"it is no adapter ({info.other_model})"
    return "it is a base" if info.kind == BASE else "it is no adapter"
