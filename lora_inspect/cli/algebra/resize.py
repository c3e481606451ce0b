"""`lora-inspect resize`: another rank for one adapter, or for each adapter in a folder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.algebra.options import ResizeRequest, contradiction
from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.verb import VERBS, FilePath, Verb, declared_options, json_option, writing_options

if TYPE_CHECKING:
    from lora_inspect.ops.folder import Outcome
    from lora_inspect.ops.resize import SumResult
    from lora_inspect.reading.adapter import Adapter
    from lora_inspect.reading.model.settings import Settings

# No docstring: python -OO leaves those out.
_HELP = """\
Give ADAPTER another rank: the nearest change that --rank, --energy, --max-error, --size or --max-rank allows.

The output keeps names, and RS-LoRA stays RS-LoRA. With --rank N every module gets rank N. Above its own rank the change
stays the same, and a training continues with new directions. If ADAPTER is a folder of adapters, `resize` writes each
into the folder OUT under its name.

\b
Example: lora-inspect resize style.safetensors --energy 0.99 \\
  -o smaller.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["resize"])
@click.argument("adapter", type=FilePath(), metavar="ADAPTER[:SETTING,...]")
@writing_options(dry_run=True)
@declared_options(ResizeRequest)
@click.option("--dry-run", is_flag=True, is_eager=True, help="Print ranks, bytes and errors; write nothing.")
@json_option()
def resize(adapter: str, output: str | None, force: bool, dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Plan, write and print."""
    from lora_inspect.cli.algebra.made_account import tell
    from lora_inspect.cli.progress_bar import progress_bar
    from lora_inspect.files.discovery import is_collection
    from lora_inspect.ops.resize import plan_resize, planned_result
    from lora_inspect.ops.resize import resize as resize_planned
    from lora_inspect.reading.model.settings import parse_argument

    request = ResizeRequest(**asked)
    if wrong := contradiction(request, needs_rule="resize"):
        raise click.UsageError(wrong)
    path, settings = parse_argument(adapter)
    if is_collection(path):
        _resize_folder(path, settings._replace(of_several=True), output, request, force, dry_run, as_json)
        return
    plan = plan_resize(path, settings, output, request)
    with progress_bar("Resizing", plan.steps) as progress:
        result = planned_result(plan, progress) if dry_run else resize_planned(plan, force, progress)
    tell(result, as_json)


def _resize_folder(
    folder: str,
    settings: "Settings",
    output: str | None,
    request: ResizeRequest,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Resize every adapter below a folder, print all results, and exit if one failed, or if none can be read.

    Without an output, a dry run names outputs in a folder next to it.
    """
    from lora_inspect.cli.progress_bar import progress_bar
    from lora_inspect.converting.standard_fix import output_ending
    from lora_inspect.ops.folder import find_in_folder, find_unread_refusal, make_in_folder
    from lora_inspect.ops.resize import plan_resize, planned_result
    from lora_inspect.ops.resize import resize as resize_planned
    from lora_inspect.programs import PROGRAMS

    def resize_one(adapter: "Adapter", target: str) -> "SumResult":
        plan = plan_resize(adapter.checkpoint.path, settings, target, request)
        return planned_result(plan) if dry_run else resize_planned(plan, force)

    def ending(adapter: "Adapter") -> str:
        from lora_inspect.converting.options import ConvertOptions
        from lora_inspect.converting.target.target_program import scheme_for

        is_program = request.to in PROGRAMS
        named = ConvertOptions(program=request.to) if is_program else ConvertOptions(scheme=request.to)
        return output_ending(adapter, scheme_for(adapter, named))

    output = output or f"{folder.rstrip('/')}-resized"
    found = find_in_folder(folder, output)
    with progress_bar("Resizing", len(found)) as progress:
        outcomes = make_in_folder(found, folder, output, settings, ending, resize_one, progress)
    set_complete_outputs(one.target for one in outcomes if one.result and not dry_run)
    failures = terminal.failures_of(outcomes)
    if as_json:
        records = [
            one.result.to_dict() if one.result else failures[one.path].record() if one.path in failures
            else {"schema": "lora-inspect/resize-skipped/1", "path": one.path, "skipped": one.skipped}
            for one in outcomes
        ]  # fmt: skip
        terminal.json_text(records)
    else:
        _tell(outcomes, "would be resized" if dry_run else "resized")
    unread = {one.path for one in found if one.is_unread}
    if refusal := find_unread_refusal(folder, [one.path for one in found], unread):
        failures[folder] = terminal.failure(folder, refusal)
    terminal.exit_with(failures)


def _tell(outcomes: "Sequence[Outcome[SumResult]]", done: str) -> None:
    from lora_inspect.cli.algebra.made_account import energy_and_error, modules_in_words, size_in_words

    rows = [
        (one.output, modules_in_words(one), size_in_words(one.bytes), *energy_and_error(one))
        for one in (outcome.result for outcome in outcomes)
        if one
    ]
    terminal.table(rows, ("output", "modules", "size", "energy", "error"))
    terminal.tell_counts(outcomes, done)
    terminal.tell_skipped(outcomes)
