"""`lora-inspect report`."""

from itertools import groupby
from typing import Any

import click

from lora_inspect.algebra.options import ReportRequest
from lora_inspect.cli import terminal
from lora_inspect.cli.check import print_problems
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.progress_bar import percent, progress_bar
from lora_inspect.cli.verb import FORCE_HELP, VERBS, FilePath, Verb, declared_options, json_option
from lora_inspect.reading.model.evidence import NOTE, Problem
from lora_inspect.sentences import size_in_words

# No docstring: python -OO leaves those out.
_HELP = """\
Write one HTML page on adapters: their kind, the size of the change by layer, the rank that they use, and commands.

The page needs no network and runs no script. It has a heat map of blocks and layers, the singular values, the energy
that each rank keeps, commands, and all numbers as JSON. It shows several adapters together, at the multipliers after
the colons: their cosines, common directions, and the size of the sum. The command prints their errors and warnings.

\b
Example: lora-inspect report adapter.safetensors -o report.html
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["report"])
@click.argument("adapters", nargs=-1, required=True, type=FilePath(), metavar="ADAPTER[:SETTING,...]...")
@click.option("-o", "--output", type=FilePath(), metavar="OUT", help="The page, or a folder. [default: report.html]")
@click.option("--force", is_flag=True, help=FORCE_HELP)
@declared_options(ReportRequest)
@json_option()
def report(adapters: tuple[str, ...], output: str | None, force: bool, as_json: bool, **asked: Any) -> None:
    """Read, measure, write and print."""
    from lora_inspect.ops.report import plan_report
    from lora_inspect.ops.report import report as write_report
    from lora_inspect.reading.model.settings import parse_arguments

    plan = plan_report(parse_arguments(adapters), ReportRequest(**asked), output)
    with progress_bar("Measuring", plan.steps, percent) as progress:
        result = write_report(plan, force, progress)
    set_complete_outputs([result.output])
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
        return
    for headline in result.headlines:
        terminal.line(headline)
    serious = [problem for problem in result.problems if problem.severity != NOTE]
    for path, problems in groupby(serious, lambda problem: problem.path):
        print_problems(path, [Problem(one.code, one.severity, one.message) for one in problems])
    terminal.line(f"wrote {result.output}, {size_in_words(result.bytes)}")
