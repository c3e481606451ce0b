"""`lora-inspect convert` of a folder: each adapter in it into another folder, whatever becomes of the others."""

import os
import sys
from dataclasses import replace
from typing import Any

import click

from lora_inspect.cli import conversion_told, terminal
from lora_inspect.cli.failures import sentence_of, show_defect
from lora_inspect.cli.progress_bar import progress_bar
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.key_names import output_ending
from lora_inspect.converting.target.target_program import scheme_for
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import Mirrored, mirrored
from lora_inspect.files.outputs import folder_of_outputs
from lora_inspect.ops.convert import ConvertResult, convert_to_standard
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.stores.address import is_remote


class _Outcome(NamedTuple):
    """What became of one checkpoint: its conversion, the reason why it was skipped, or the sentence of its error."""

    path: str
    result: ConvertResult | None = None
    skipped: str = ""
    error: str = ""


def convert_folder(folder: str, output: str, options: ConvertOptions, force: bool, as_json: bool) -> None:
    """Converts every adapter below `folder` to the same place below `output`, tells of all and exits 1 if one failed.

    Raises LoraInspectError where the output is the folder itself or no folder, and where no adapter is in the folder.
    """
    _check(folder, output)
    found = mirrored(folder, output)
    if not found:
        open_checkpoint(folder)  # which says what there is instead
    outcomes: list[_Outcome] = []
    with progress_bar("Converting", len(found)) as progress, folder_of_outputs(output):
        progress(0)
        for one in found:
            outcomes.append(_converted(one, output, options, force, outcomes))
            progress(1)
    if not any(outcome.result or outcome.error for outcome in outcomes):
        raise LoraInspectError(f"{folder}: it holds no adapter to convert; name a folder that does.")
    if as_json:
        terminal.json_text([_record(outcome) for outcome in outcomes])
    else:
        _tell(outcomes)
    failed = [outcome.error for outcome in outcomes if outcome.error]
    for error in failed:
        terminal.error(error)
    if failed:
        sys.exit(1)


def _check(folder: str, output: str) -> None:
    if os.path.lexists(output) and not os.path.isdir(output):
        raise LoraInspectError(f"{output}: {folder} is a folder of adapters, so a folder is written; choose another.")
    if is_remote(folder):
        return
    if os.path.isdir(output) and os.path.samefile(folder, output):
        raise LoraInspectError(f"{output}: it is the folder of the inputs; choose another output.")
    if os.path.join(os.path.realpath(folder), "").startswith(os.path.join(os.path.realpath(output), "")):
        raise LoraInspectError(f"{output}: the folder of the inputs is in it; choose another output.")


def _converted(one: Mirrored, output: str, options: ConvertOptions, force: bool, before: list[_Outcome]) -> _Outcome:
    try:
        kind, adapter = kind_of(read_adapter(open_checkpoint(one.path), options.settings))
        if kind != ADAPTER:
            return _Outcome(one.path, skipped="it is a base" if kind == "base" else "it is no adapter")
        target = os.path.join(output, one.stem + output_ending(adapter, scheme_for(adapter, options)))
        if taken := next((done.path for done in before if done.result and done.result.output == target), None):
            raise LoraInspectError(f"{one.path}: {taken} is written to {target} already; give one another name.")
        present = {module.name.component for module in adapter.modules.values()}
        own = tuple(component for component in options.only if component in present)
        options = replace(options, only=own or options.only)
        with folder_of_outputs(os.path.dirname(target)):
            return _Outcome(one.path, convert_to_standard(one.path, target, options, force))
    except click.ClickException:
        raise
    except Exception as error:  # one file that cannot be converted leaves the others their outputs
        show_defect(error)
        return _Outcome(one.path, error=sentence_of(error, one.path))


def _record(outcome: _Outcome) -> dict[str, Any]:
    if outcome.result:
        return {"path": outcome.path, **outcome.result.to_dict()}
    return {"path": outcome.path, **({"error": outcome.error} if outcome.error else {"skipped": outcome.skipped})}


def _tell(outcomes: list[_Outcome]) -> None:
    """A line for each adapter that was converted, how many there are of each kind, and what was skipped."""
    done = [outcome.result for outcome in outcomes if outcome.result]
    for result in done:
        terminal.line(f"{conversion_told.headline(result)}; {conversion_told.loss(result)}")
    skipped = [outcome for outcome in outcomes if outcome.skipped]
    counts = {"converted": len(done), "skipped": len(skipped), "failed": len(outcomes) - len(done) - len(skipped)}
    terminal.line(", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "converted"))
    for result in done:
        for note in result.notes:
            terminal.note(note)
    for outcome in skipped:
        terminal.note(f"{outcome.path}: skipped, as {outcome.skipped}.")
