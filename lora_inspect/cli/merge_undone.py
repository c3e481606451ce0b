"""`lora-inspect merge --undo`."""

from collections.abc import Sequence

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.progress_bar import progress_bar
from lora_inspect.ops.undo import UndoResult, check_undo_output, plan_undo, planned_undo, undo_output
from lora_inspect.ops.undo import undo as undo_files
from lora_inspect.reading.model.settings import Settings
from lora_inspect.sentences import some

# What the merged model is asked of, and what else --undo takes.
_TAKEN = (
    *("base", "adapters", "output", "force", "is_undo", "original", "accept_unproved", "dry_run", "as_json", "help"),
)
_SHOWN = 3


def undo(
    merged: str,
    adapters: Sequence[tuple[str, Settings]],
    output: str | None,
    force: bool,
    base: str | None,
    accept_unproved: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Plans, undoes and prints."""
    _refuse_other_options(click.get_current_context())
    plan = plan_undo(merged, adapters, base)
    if dry_run:
        if output is not None:
            output = undo_output(plan, output)
            check_undo_output(plan, output, force)
        if as_json:
            terminal.json_text(planned_undo(plan, output))
        else:
            terminal.line(
                f"would take {len(plan.merge.adapters)} adapters out of {len(plan.folds)} weights of {merged}"
            )
        return
    assert output is not None  # the option asks for it where there is no dry run
    with progress_bar("Undoing", plan.bytes) as progress:
        result = undo_files(plan, output, force, accept_unproved, progress)
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
    else:
        _print(result, base)


def _refuse_other_options(context: click.Context) -> None:
    """Refuses the options of a merge: the merged model records with which of them it was made."""
    for option in context.command.params:
        is_given = context.get_parameter_source(option.name or "") is not click.core.ParameterSource.DEFAULT
        if is_given and option.name not in _TAKEN:
            raise click.UsageError(f"{option.opts[0]} is no option of --undo: the merged model records it.")


def _print(result: UndoResult, base: str | None) -> None:
    terminal.line(f"took {', '.join(result.adapters)} out of {result.weights} weights into {result.output}")
    if base is not None:
        terminal.line(f"all is as in {base}")
        if unchecked := result.unchecked:
            told = some(unchecked, _SHOWN)
            terminal.aside(f"{len(unchecked)} tensors could not be held against the merged model: {told}")
    else:
        share = result.proved / result.entries if result.entries else 1.0
        terminal.line(f"{result.proved:,} of {result.entries:,} changed numbers are proved ({share:.2%})")
        terminal.line(f"{result.tensors_copied} tensors copied unchanged")
        if left := result.entries - result.proved:
            terminal.aside(f"{left:,} numbers are the nearest ones, not proved: {some(list(result.unproved), _SHOWN)}")
    terminal.line(f"{result.bytes:,} bytes in {result.seconds:.1f} s")
