"""`lora-inspect compat`."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.progress_bar import progress_bar
from lora_inspect.cli.terminal import FAINT, RIGHT, WRONG, Line, Sheet, StyledText, spelled, wrapped
from lora_inspect.cli.verb import (
    FAILURES,
    ON_UNTESTED,
    ON_WRONG,
    VERBS,
    FilePath,
    NearChoice,
    Verb,
    declared_options,
    json_option,
    parse_without_multiplier,
)
from lora_inspect.converting.options import titles_of_programs
from lora_inspect.option import ReadingRequest
from lora_inspect.programs import PROGRAMS
from lora_inspect.programs.record import READ
from lora_inspect.sentences import SENTENCE, shortened, width

if TYPE_CHECKING:
    from lora_inspect.files.discovery import FolderFiles
    from lora_inspect.ops.compat import CompatResult, Judgement
    from lora_inspect.reading.model.settings import Settings

# No docstring: python -OO leaves those out.
_HELP = """\
Report how every program that loads adapters applies ADAPTER, and the command that fixes it.

With --for the exit status is 1 if the file would be wrong in that program, or if it has no such models, and with
--fail-on untested also if nobody has tested it there. A folder of adapters is a table with a row for each file in the
program that --for names.

\b
Example: lora-inspect compat adapter.safetensors --for comfyui
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["compat"])
@click.argument("adapter", type=FilePath(), metavar="ADAPTER[:SETTING,...]|FOLDER")
@click.option(
    "--for",
    "named",
    type=NearChoice(sorted(PROGRAMS), titles_of_programs()),
    metavar="NAME",
    help=f"Judge only this program: {', '.join(sorted(PROGRAMS))}.",
)
@click.option(
    "--base",
    type=FilePath(),
    metavar="BASE",
    help="The base, for DoRA's error and in printed commands.",
)
@click.option("--all", "shows_all", is_flag=True, help="Also show programs without models of the family.")
@click.option("--strict", is_flag=True, help="The same as --fail-on untested.")
@click.option(
    "--fail-on",
    type=click.Choice(FAILURES),
    help="With --for: exit with 1 if a file is wrong in the program, or untested in it as well. [default: wrong]",
)
@declared_options(ReadingRequest)
@json_option("as_json_")
def compat(
    adapter: str,
    named: str | None,
    base: str | None,
    shows_all: bool,
    strict: bool,
    fail_on: str | None,
    as_json_: bool,
    **asked: Any,
) -> None:
    """Judge and print."""
    from lora_inspect.files.checkpoint import open_checkpoint
    from lora_inspect.files.discovery import files_of_several
    from lora_inspect.ops.compat import compat as judged
    from lora_inspect.programs.verdict import NO_MODELS, UNTESTED
    from lora_inspect.reading.keys.claims import claim
    from lora_inspect.reading.model.settings import requested_settings

    adapter, own = parse_without_multiplier(adapter, "compat")
    settings = own.joined(requested_settings(ReadingRequest(**asked)), adapter)
    fails_untested = strict or fail_on == ON_UNTESTED
    if files := files_of_several(adapter):
        if not named or base:
            raise click.UsageError("a folder of adapters takes one program; name it with --for, without --base.")
        _print_folder(adapter, files, settings, named, ON_UNTESTED if fails_untested else ON_WRONG, as_json_)
        return
    if (strict or fail_on) and not named:
        raise click.UsageError(f"{'--strict' if strict else '--fail-on'} is about a program; name it with --for.")
    length = len(claim(open_checkpoint(adapter).tensors).modules) if base else 0
    with progress_bar("Comparing", length) as progress:
        result = judged(adapter, named, settings, base, progress)
    if as_json_:
        terminal.json_text(result.to_dict())
    else:
        terminal.line(result.path)
        _print(result, shows_all or named is not None)
    failing = (NO_MODELS, UNTESTED) if fails_untested else (NO_MODELS,)
    if named and any(one.needs_fix or one.verdict in failing for one in result.verdicts):
        sys.exit(1)


def _print_folder(
    path: str, files: "FolderFiles", settings: "Settings", program: str, fail_on: str, as_json: bool
) -> None:
    """Print the row of each file, and exit with 1 if one is wrong in the program."""
    from lora_inspect.cli.info.one_file import folder_argument
    from lora_inspect.cli.info.selection import FolderOptions
    from lora_inspect.cli.info.several_files import info_of_several

    options = FolderOptions(program=program, fail_on=fail_on)
    info_of_several([folder_argument(path, files, settings)], modules=False, json=as_json, options=options)


def _print(result: "CompatResult", shows_all: bool) -> None:
    """Print a row per program with models of such a family, and below them each fix with its programs."""
    from lora_inspect.programs.verdict import UNJUDGED

    shown = [one for one in result.verdicts if one.has_models or shows_all]
    shown.sort(key=lambda one: one.verdict in UNJUDGED)
    terminal.laid_out(_rows(shown))
    for has_models, why in ((False, "not for such models"), (None, "not tested, as the file's model is not known")):
        hidden = [one.program.name for one in result.verdicts if one not in shown and one.has_models is has_models]
        if hidden:
            said = f"{why}: {', '.join(hidden)} (--all shows them)"
            terminal.laid_out(Sheet(terminal.room()).sentence(said, FAINT))
    _tell_other_versions(shown)
    fixes: dict[str, list[str]] = {}
    for one in shown:
        if one.fix:
            fixes.setdefault(one.fix, []).append(f"{one.program.title} {one.program.version}")
    for fix, names in fixes.items():
        terminal.line("")
        terminal.line(f"For {', '.join(names)}:")
        terminal.line(f"  {fix}")


def _tell_other_versions(judgements: "Sequence[Judgement]") -> None:
    """Print a note for each package in another version than the answers refer to."""
    known = {
        (name, installed, PROGRAMS[one.program.name].distributions[name])
        for one in judgements
        for name, installed in one.installed.items()
    }
    for name, installed, version in sorted(known):
        terminal.note(f"{name} {installed} is installed here, and the answers are of {name} {version}.")


def _rows(judgements: "Sequence[Judgement]") -> Iterator[Line]:
    """Yield name for --for, title, version and verdict of each program, with the sentence if it fits."""
    from lora_inspect.programs.verdict import SAME, UNJUDGED

    looks = {SAME: RIGHT, **dict.fromkeys(UNJUDGED, FAINT)}
    heads = [(one.program.name, f"{one.program.title} {one.program.version}", _in_short(one)) for one in judgements]
    sizes = [max(map(width, column), default=0) for column in zip(*heads, strict=True)]
    for one, (name, title, verdict) in zip(judgements, heads, strict=True):
        pieces = [StyledText(f"{name:{sizes[0]}}  {title:{sizes[1]}}  ")]
        pieces.append(StyledText(verdict, looks.get(one.verdict, WRONG)))
        says = spelled(shortened(_says(one), SENTENCE))
        room = terminal.room() - sum(sizes) - 6
        if says and width(says) <= room:
            yield [*pieces, StyledText(f"{' ' * (sizes[2] - width(verdict))}  {says}")]
            continue
        yield pieces
        yield from ([StyledText(f"    {line}")] for line in wrapped(says, terminal.room() - 4) if says)


def _says(one: "Judgement") -> str:
    from lora_inspect.programs.verdict import REFUSED

    says = f"it stops with an error: {one.says}" if one.verdict == REFUSED else one.says
    return says if one.error is None else f"{says}: the change is {one.error:.1%} off on this base"


def _in_short(one: "Judgement") -> str:
    from lora_inspect.programs.verdict import STRENGTH

    strength = f" x{one.factor:g}" if one.verdict == STRENGTH and one.factor is not None else ""
    return f"{one.verdict}{strength}{' (read)' if one.by == READ else ''}"
