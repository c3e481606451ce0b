"""`lora-inspect combine`: the sum of adapters as one adapter."""

from typing import Any

import click

from lora_inspect.algebra.options import CombineRequest, contradiction
from lora_inspect.cli.verb import VERBS, FilePath, Verb, declared_options, json_option, writing_options

# No docstring: python -OO leaves those out.
_HELP = """\
Write the sum of ADAPTERs, each with its own multiplier (default 1), as one adapter.

The inputs may differ in rank, alpha, algorithm, naming scheme and layout. The output has the names of the first, or
those of --to. Ranks add up, and the sum is exact but for rounding. One of --rank, --energy, --max-error and --size
trims it. Other methods than the sum weaken conflicts, or directions that several adapters share. Settings follow the
colon of an ADAPTER as for `merge`: 0,blocks.0-9=1 takes only these blocks.

\b
Example: lora-inspect combine style.safetensors:0.8 face.safetensors:0.5 \\
  -o both.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["combine"])
@click.argument("adapters", nargs=-1, required=True, type=FilePath(), metavar="ADAPTER[:SETTING,...]...")
@writing_options(dry_run=True)
@declared_options(CombineRequest)
@click.option("--dry-run", is_flag=True, is_eager=True, help="Print ranks, bytes and errors; write nothing.")
@json_option()
def combine(
    adapters: tuple[str, ...], output: str | None, force: bool, dry_run: bool, as_json: bool, **asked: Any
) -> None:
    """Plan, write and print."""
    from lora_inspect.cli.algebra.made_account import carried_in_words, tell
    from lora_inspect.cli.progress_bar import progress_bar
    from lora_inspect.ops.combine import combine as combine_planned
    from lora_inspect.ops.combine import plan_combine, planned_result
    from lora_inspect.reading.model.settings import parse_arguments

    request = CombineRequest(**asked)
    if wrong := contradiction(request):
        raise click.UsageError(wrong)
    plan = plan_combine(parse_arguments(adapters), output, request)
    with progress_bar("Combining", plan.steps) as progress:
        result = planned_result(plan, progress) if dry_run else combine_planned(plan, force, progress)
    tell(result, as_json, carried_in_words(result))
