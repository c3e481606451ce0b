"""`lora-inspect compat`."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.progress_bar import progress_bar
from lora_inspect.cli.verb import VERBS, FilePath, NearChoice, Verb, declared_options, parse_without_multiplier
from lora_inspect.converting.options import titles_of_programs
from lora_inspect.option import ReadingRequest
from lora_inspect.programs import PROGRAMS
from lora_inspect.programs.record import READ

if TYPE_CHECKING:
    from lora_inspect.ops.compat import JudgedProgram, Judgement

# No docstring: python -OO leaves those out.
_HELP = """\
Report how every program that loads adapters applies ADAPTER, and the command that fixes it.

With --for the exit status is 1 if the file would be wrong in that program.

\b
Example: lora-inspect compat adapter.safetensors --for comfyui
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["compat"])
@click.argument("adapter", type=FilePath(), metavar="ADAPTER[:SETTING,...]")
@click.option(
    "--for",
    "named",
    type=NearChoice(sorted(PROGRAMS), titles_of_programs()),
    metavar="PROGRAM",
    help=f"Judge only this program: {', '.join(sorted(PROGRAMS))}.",
)
@click.option(
    "--base",
    type=FilePath(),
    metavar="BASE",
    help="The base, for DoRA's error and in printed commands.",
)
@declared_options(ReadingRequest)
@click.option("--json", "as_json_", is_flag=True, help="Print the result as JSON.")
def compat(adapter: str, named: str | None, base: str | None, as_json_: bool, **asked: Any) -> None:
    """Judges and prints."""
    from lora_inspect.files.checkpoint import open_checkpoint
    from lora_inspect.ops.compat import compat as judged
    from lora_inspect.reading.keys.claims import claim
    from lora_inspect.reading.model.settings import requested_settings

    adapter, own = parse_without_multiplier(adapter, "compat")
    told = own.joined(requested_settings(ReadingRequest(**asked)), adapter)
    length = len(claim(open_checkpoint(adapter).tensors).modules) if base else 0
    with progress_bar("Comparing", length) as progress:
        result = judged(adapter, named, told, base, progress)
    if as_json_:
        terminal.json_text(result.to_dict())
    else:
        terminal.line(result.path)
        _print(result.verdicts)
    if named and any(one.needs_fix for one in result.verdicts):
        sys.exit(1)


def _print(verdicts: "tuple[Judgement, ...]") -> None:
    """Print a row per program, and below them each fix with its programs; unknown ones share a line."""
    from lora_inspect.programs.verdict import UNKNOWN

    titles = Counter(one.program.title for one in verdicts)
    known = [one for one in verdicts if one.verdict != UNKNOWN]
    if known:
        terminal.columns_of([(_name(one.program, titles), _in_short(one), _says(one)) for one in known])
    if unknown := [_name(one.program, titles) for one in verdicts if one.verdict == UNKNOWN]:
        terminal.line(f"unknown: {', '.join(unknown)}")
    fixes: dict[str, list[str]] = {}
    for one in known:
        if one.fix:
            fixes.setdefault(one.fix, []).append(_name(one.program, titles))
    for fix, names in fixes.items():
        terminal.line("")
        terminal.line(f"For {', '.join(names)}:")
        terminal.line(f"  {fix}")


def _name(program: "JudgedProgram", titles: Counter[str]) -> str:
    """Its title, with the version where several of one program are there."""
    return f"{program.title} {program.version}" if titles[program.title] > 1 else program.title


def _says(one: "Judgement") -> str:
    return one.says if one.error is None else f"{one.says}: the change is {one.error:.1%} off on this base"


def _in_short(one: "Judgement") -> str:
    from lora_inspect.programs.verdict import STRENGTH

    strength = f" x{one.factor:g}" if one.verdict == STRENGTH and one.factor is not None else ""
    return f"{one.verdict}{strength}{' (read)' if one.by == READ else ''}"
