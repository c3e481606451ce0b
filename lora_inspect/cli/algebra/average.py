"""`lora-inspect average`: the average of adapters, such as the epochs of one training."""

from typing import Any

import click

from lora_inspect.algebra.options import FACTORS, AverageRequest, contradiction
from lora_inspect.cli import terminal
from lora_inspect.cli.verb import VERBS, FilePath, Verb, declared_options, json_option, writing_options

# No docstring: python -OO leaves those out.
_HELP = """\
Write the average of the changes of FILEs, with equal weights or by the steps of a training.

--beta and --sigma-rel weigh files by their steps: those of FILE:step=N, else of ss_steps in the metadata, else the
number in the name. The rank of a module is its largest rank in the inputs, unless a rule or --exact decides it.

\b
Example: lora-inspect average style-000006.safetensors \\
  style-000008.safetensors --sigma-rel 0.2 -o style.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["average"])
@click.argument("files", nargs=-1, required=True, type=FilePath(), metavar="FILE[:SETTING,...]...")
@writing_options(dry_run=True)
@declared_options(AverageRequest)
@click.option("--dry-run", is_flag=True, is_eager=True, help="Print weights, ranks, bytes and errors; write nothing.")
@json_option()
def average(
    files: tuple[str, ...], output: str | None, force: bool, dry_run: bool, as_json: bool, **asked: Any
) -> None:
    """Plan, write and print."""
    from lora_inspect.cli.algebra.made_account import tell
    from lora_inspect.cli.progress_bar import progress_bar
    from lora_inspect.ops.average import average as average_planned
    from lora_inspect.ops.average import plan_average, planned_result
    from lora_inspect.reading.model.settings import parse_arguments

    request = AverageRequest(**asked)
    if wrong := contradiction(request):
        raise click.UsageError(wrong)
    plan = plan_average(parse_arguments(files), output, request)
    with progress_bar("Averaging", plan.steps) as progress:
        result = planned_result(plan, progress) if dry_run else average_planned(plan, force, progress)
    steps = [""] * len(result.weights) if result.steps is None else [f" at step {step:,}" for step in result.steps]
    weights = [f"weight {weight:.4g}{step}" for weight, step in zip(result.weights, steps, strict=True)]
    if request.of == FACTORS:
        apart = "not measured" if result.apart is None else f"{result.apart:.2g}"
        tell(result, as_json, weights, f"relative difference from the average of changes: {apart}")
        return
    tell(result, as_json, weights)
    if result.apart is not None and not as_json:
        terminal.line(f"relative difference of the average of factors (--of factors): {result.apart:.2g}")
