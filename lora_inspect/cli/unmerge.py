"""`lora-inspect unmerge`."""

from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.verb import VERBS, FilePath, Verb, declared_options, json_option, writing_options
from lora_inspect.merging.options import UnmergeRequest
from lora_inspect.sentences import some

if TYPE_CHECKING:
    from lora_inspect.ops.unmerge import UnmergeResult

# No docstring: python -OO leaves those out.
_HELP = """\
Remove the adapters of the last merge from MERGED and write the result.

MERGED records the adapters of the merge, their multipliers and its options. `unmerge` looks for an unnamed ADAPTER in
the folder of MERGED, under its recorded name. --base restores the original model completely.

\b
Example: lora-inspect unmerge merged.safetensors style.safetensors \\
  -o restored.safetensors --allow-ambiguous
"""
_SHOWN = 3


@click.command(help=_HELP, cls=Verb, short_help=VERBS["unmerge"])
@click.argument("merged", type=FilePath())
@click.argument("adapters", metavar="[ADAPTER]...", nargs=-1, type=FilePath())
@writing_options(dry_run=True)
@declared_options(UnmergeRequest)
@click.option(
    "--dry-run", is_flag=True, is_eager=True, help="Print the planned removal, with or without -o; write nothing."
)
@json_option()
def unmerge(
    merged: str,
    adapters: tuple[str, ...],
    output: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Plan, unmerge and print."""
    from lora_inspect.cli.progress_bar import progress_bar
    from lora_inspect.ops.unmerge import check_unmerge_output, plan_unmerge, planned_unmerge, unmerge_output
    from lora_inspect.ops.unmerge import unmerge as unmerge_files
    from lora_inspect.reading.model.settings import parse_arguments
    from lora_inspect.torchrun import launched

    request = UnmergeRequest(**asked)
    if launched():
        raise click.UsageError("unmerge does not run in several processes; run it without torchrun.")
    plan = plan_unmerge(merged, parse_arguments(adapters), request)
    if dry_run:
        if output is not None:
            output = unmerge_output(plan, output)
            check_unmerge_output(plan, output, force)
        if as_json:
            terminal.json_text(planned_unmerge(plan, output))
        else:
            terminal.line(
                f"would take {len(plan.merge.adapters)} adapters out of {len(plan.folds)} weights of {merged}"
            )
        return
    assert output is not None  # the option asks for it where there is no dry run
    with progress_bar("Undoing", plan.bytes) as progress:
        result = unmerge_files(plan, output, force, progress)
    set_complete_outputs([result.output])
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
    else:
        _print(result, request.base)


def _print(result: "UnmergeResult", base: str | None) -> None:
    terminal.line(f"took {', '.join(result.adapters)} out of {result.weights} weights into {result.output}")
    if base is not None:
        terminal.line(f"all tensors are as in {base}")
        if unchecked := result.unchecked:
            told = some(unchecked, _SHOWN)
            terminal.aside(f"unmerge could not compare {len(unchecked)} tensors with the merged model: {told}")
    else:
        share = result.proved / result.entries if result.entries else 1.0
        terminal.line(f"{result.proved:,} of {result.entries:,} changed numbers are proved ({share:.2%})")
        terminal.line(f"{result.tensors_copied} tensors copied unchanged")
        if left := result.entries - result.proved:
            terminal.aside(f"{left:,} numbers are the nearest ones, not proved: {some(list(result.unproved), _SHOWN)}")
    terminal.line(f"{result.bytes:,} bytes in {result.seconds:.1f} s")
