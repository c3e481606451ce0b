"""`lora-inspect extract`."""

from typing import TYPE_CHECKING, Any

import click

from lora_inspect.algebra.options import ExtractRequest, contradiction
from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.progress_bar import progress_bar
from lora_inspect.cli.verb import VERBS, FilePath, Verb, declared_options, json_option, writing_options
from lora_inspect.sentences import counted, shortened, some

if TYPE_CHECKING:
    from lora_inspect.ops.extract import ExtractResult

# The number of names that are shown for one reason.
_NAMES = 3

# No docstring: python -OO leaves those out.
_HELP = """\
Write the difference of TUNED and BASE as an adapter: BASE with this adapter at 1 is TUNED, as far as the ranks allow.

One of --rank, --energy, --max-error and --size decides the ranks, and --max-rank caps them. `extract` leaves out
directions that the rounding of the models may explain. Biases, norms and other vectors become differences, unless
--weights-only leaves them out.

Image and video models get kohya's names, language models a PEFT folder; --to chooses others.

\b
Example: lora-inspect extract tuned.safetensors base.safetensors --rank 32 \\
  -o adapter.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["extract"])
@click.argument("tuned", type=FilePath())
@click.argument("base", type=FilePath())
@writing_options(dry_run=True)
@declared_options(ExtractRequest)
@click.option(
    "--dry-run", is_flag=True, is_eager=True, help="Compute and print the result, with or without -o; write nothing."
)
@json_option()
def extract(tuned: str, base: str, output: str | None, force: bool, dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Plan, extract and print."""
    request = ExtractRequest(**asked)
    if wrong := contradiction(request, needs_rule="extract"):
        raise click.UsageError(wrong)
    from lora_inspect.ops.extract import extract as extract_planned
    from lora_inspect.ops.extract import plan_extract

    plan = plan_extract(tuned, base, request, output)
    with progress_bar("Extracting", plan.modules) as progress:
        result = extract_planned(plan, force, dry_run, progress)
    if result.is_made and result.output:
        set_complete_outputs([result.output])
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
    else:
        _print(result)


def _print(result: "ExtractResult") -> None:
    into = "" if result.output is None else f" into {result.output}"
    ranks = ", ".join(f"{rank} ({count})" for rank, count in result.ranks.items()) or "none"
    terminal.line(f"{'extracted' if result.is_made else 'would extract'} {counted(result.modules, 'module')}{into}")
    terminal.line(f"ranks (modules): {ranks}")
    if result.differences:
        terminal.line(f"{counted(result.differences, 'difference')} of biases, norms and other vectors beside them")
    terminal.line(f"energy: {result.energy:.6g}, error: {result.error:.3g}, rounding: {result.rounding:.2g}")
    whole = "not known, as a tensor that was not asked for is not finite"
    if result.whole_error is not None:
        whole = f"{result.whole_error:.3g}, with everything left out"
    terminal.line(f"whole error: {whole}")
    if result.worst:
        terminal.line(f"worst module: {shortened(result.worst.module)}, error {result.worst.error:.3g}")
    terminal.line(f"noise of the models: {result.noise:.2g} of the difference")
    if result.equal:
        terminal.line(f"{counted(result.equal, 'tensor')} equal in both models")
    for reason, share in result.shares.items():
        names = [name for name, why in result.left_out.items() if why.startswith(reason)]
        terminal.aside(
            f"left out, {reason}: {some(list(map(shortened, names)), _NAMES)} ({share:.2g} of the squared norm)"
        )
    if result.unasked:
        terminal.aside(f"not asked for: {some(list(map(shortened, result.unasked)), _NAMES)}")
    if result.unpaired:
        terminal.aside(f"in one model only: {some(list(map(shortened, result.unpaired)), _NAMES)}")
    terminal.line(f"{result.bytes:,} bytes as {result.dtype} in {result.seconds:.1f} s")
