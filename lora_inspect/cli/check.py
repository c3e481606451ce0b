"""`lora-inspect check`, and its printed problems: a line for each, fitted to the width of a terminal."""

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.info.selection import architecture_option
from lora_inspect.cli.progress_bar import bar_below, percent
from lora_inspect.cli.terminal import (
    BOLD,
    DOUBTFUL,
    FAINT,
    PLAIN,
    RIGHT,
    WRONG,
    CommandFailure,
    StyledText,
    failure,
    show_defect,
    spelled,
    wrapped,
)
from lora_inspect.cli.verb import FORCE_HELP, VERBS, FilePath, Verb, json_option, parse_without_multiplier
from lora_inspect.errors import REFUSED_STATUS, LoraInspectError
from lora_inspect.files.discovery import is_collection, stored_bytes
from lora_inspect.files.file_types import of_any_pickle
from lora_inspect.reading.model.evidence import ERROR, NOTE, SEVERITIES, WARNING, Problem
from lora_inspect.sentences import SENTENCE, counted, listed, shortened

if TYPE_CHECKING:
    from lora_inspect.ops.check import CheckResult
    from lora_inspect.reading.model.settings import Settings

_LOOKS = {ERROR: WRONG, WARNING: DOUBTFUL, NOTE: FAINT}
# Of a file without problems, by whether its numbers were read.
_CLEAN = {True: "no problems", False: "no problem in the header; --tensors reads the numbers"}
_WITHOUT = {True: "without problems", False: "without problems in the header; --tensors reads the numbers"}
# Behind a problem that a fix removes.
_FIXABLE = " --fix mends it."
# Of a code in one file; JSON and SARIF have all.
_MOST = 5


def print_problems(
    path: str, problems: Sequence[Problem], fixable: Collection[str] = (), numbers_read: bool = False
) -> None:
    """Print the problems of one file, the first few of each code, or a single line for none."""
    clean = _CLEAN[numbers_read]
    problems = list(_few(problems))
    sentences = [f"{_sentence(one)}{_FIXABLE if one.code in fixable else ''}" for one in problems]
    if sys.stdout is not None and sys.stdout.isatty():
        terminal.laid_out(_laid_out(path, problems, sentences, clean))
        return
    for says in sentences:
        terminal.line(f"{path}: {says}")
    if not problems:
        terminal.line(f"{path}: {clean}")


def print_fixed(result: "CheckResult") -> None:
    """Print the fixes of a file, the path of the copy, and the problems that remain."""
    for sentence in result.fixed:
        terminal.line(f"{result.path}: fixed: {sentence}.")
    print_problems(result.output or result.path, result.left, numbers_read=result.numbers_read)
    terminal.line(f"wrote {result.output}")


def print_several(results: "Sequence[CheckResult]", numbers_read: bool) -> None:
    """Print the files with problems, the worst first, and the number of the others.

    A fix that several unreadable files share is printed once, below them.
    """

    def severities(result: "CheckResult") -> list[int]:
        counts = Counter(one.severity for one in result.problems)
        return [-counts[severity] for severity in reversed(SEVERITIES)]

    with_problems = sorted((one for one in results if one.problems), key=lambda one: (severities(one), _of_any(one)))
    ends = [(_unreadable(one), _of_any(one)) for one in with_problems]
    for result, (own, _), (says, way_out) in zip(with_problems, ends, terminal.with_shared_ways_out(ends), strict=True):
        problems = result.problems if says == own else [result.problems[0]._replace(message=says.removesuffix("."))]
        print_problems(result.path, problems, result.fixable)
        if way_out:
            terminal.row(way_out)
    if count := len(results) - len(with_problems):
        terminal.line(
            f"{count} {_WITHOUT[numbers_read]}" if with_problems else f"{count} files: {_CLEAN[numbers_read]}"
        )


def _of_any(result: "CheckResult") -> str:
    """Return the fix of an unreadable file, without its name if it is a command; empty for other files."""
    return of_any_pickle(result.way_out, result.path) if result.way_out else ""


def _unreadable(result: "CheckResult") -> str:
    """Return the message of an unreadable file, in the form for all files with the same fix, or ""."""
    return f"{result.problems[0].message.removesuffix(result.way_out)}{_of_any(result)}." if result.way_out else ""


def _print_summary(results: "Sequence[CheckResult]") -> None:
    """Print the number of problems by severity, and the number that --fix can fix."""
    counts = Counter(one.severity for result in results for one in result.problems)
    told = [counted(counts[severity], severity) for severity in reversed(SEVERITIES) if counts[severity]]
    fixable = sum(one.code in result.fixable for result in results for one in result.problems)
    fixes = f"; --fix -o OUT fixes {fixable} of them" if fixable else ""
    terminal.line(f"{counted(len(results), 'file')}: {listed(told)}{fixes}")


def _few(problems: Sequence[Problem]) -> Iterable[Problem]:
    """Yield the first problems of each code, and one that counts its others."""
    totals, told = Counter(one.code for one in problems), Counter[str]()
    for one in problems:
        told[one.code] += 1
        if told[one.code] <= _MOST:
            yield one
        elif told[one.code] == _MOST + 1:
            yield one._replace(message=f"{totals[one.code] - _MOST:,} more of these; --json lists all")


def _sentence(problem: Problem) -> str:
    return f"{problem.severity} {problem.code}: {problem.message}."


def _laid_out(
    path: str, problems: Sequence[Problem], sentences: Sequence[str], clean: str
) -> Iterable[list[StyledText]]:
    name = spelled(shortened(path))
    if not problems:
        *lines, last = wrapped(f"{name}: {clean}", terminal.columns())
        yield from ([StyledText(line)] for line in lines)
        yield [StyledText(last.removesuffix(clean)), StyledText(clean, RIGHT)] if clean in last else [StyledText(last)]
        return
    yield from ([StyledText(line, BOLD)] for line in wrapped(name, terminal.columns()))
    for one, says in zip(problems, sentences, strict=True):
        first, *others = wrapped(spelled(shortened(says, SENTENCE)), terminal.columns() - 4)
        severity, blank, rest = first.partition(" ")
        yield [StyledText("  "), StyledText(severity, _LOOKS[one.severity]), StyledText(blank + rest)]
        yield from ([StyledText(f"    {line}", PLAIN)] for line in others)


TEXT, JSON, SARIF = "text", "json", "sarif"

# No docstring: python -OO leaves those out.
_HELP = """\
Report the problems of each PATH: a file, a sharded set, a PEFT folder, or a folder of adapters.

The exit status is 1 if a problem is as serious as --fail-on, or more serious. With --fix, `check` writes a copy and
fixes every problem with one safe fix; the status is then 0. The page docs/checking.md explains every code.

\b
Example: lora-inspect check adapter.safetensors --tensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["check"])
@click.argument("paths", nargs=-1, required=True, type=FilePath(), metavar="PATH[:SETTING,...]...")
@click.option("--tensors", is_flag=True, help="Read all numbers, to find NaN, untrained modules, spikes and overflow.")
@click.option("--skip-hashes", is_flag=True, help="Compare no hash of the metadata, which reads the whole file.")
@click.option("--fix", "fixes", is_flag=True, help="Write a fixed copy of the file to OUT; takes a single PATH.")
@click.option("-o", "--output", type=FilePath(), metavar="OUT", help="Output of --fix: a name or a folder.")
@click.option("--force", is_flag=True, help=FORCE_HELP)
@click.option("--format", "format_", type=click.Choice([TEXT, JSON, SARIF]), help="Output format. [default: text]")
@json_option("as_json_")
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES[::-1]),
    help="Least severity that makes the exit status 1. [default: warning]",
)
@architecture_option
def check(
    paths: tuple[str, ...],
    tensors: bool,
    skip_hashes: bool,
    fixes: bool,
    output: str | None,
    force: bool,
    format_: str | None,
    as_json_: bool,
    fail_on: str | None,
    architecture: str | None,
) -> None:
    """Check, print, and exit with the status of the result."""
    from lora_inspect.reading.model.settings import Settings

    given = [parse_without_multiplier(path, "check") for path in paths]
    given = [(path, own.joined(Settings(architecture=architecture), path)) for path, own in given]
    if fixes and fail_on:
        raise click.UsageError("--fail-on cannot be combined with --fix; check OUT afterwards.")
    if fixes and skip_hashes:
        raise click.UsageError("--skip-hashes cannot be combined with --fix, which keeps the hashes right.")
    if as_json_ and format_ not in (None, JSON):
        raise click.UsageError(f"--json and --format {format_} ask for two formats; leave one out.")
    format_ = JSON if as_json_ else format_ or TEXT
    if output is None and (fixes or force):
        raise click.UsageError(f"{'--fix' if fixes else '--force'} needs an output; give -o OUT.")
    if output is not None and not fixes:
        raise click.UsageError("-o names the output of --fix; give --fix, too.")
    errors: list[CommandFailure] = []
    if output is not None:
        results = [_fixed(given, output, tensors, force)]
        set_complete_outputs([results[0].output or output])
        for note in results[0].notes:
            terminal.note(note)
        if format_ == TEXT:
            print_fixed(results[0])
    else:
        results, errors = _checked(given, tensors, skip_hashes, shown=format_ == TEXT)
    statuses = [error.status for error in errors]
    if not fixes and any(result.fails(fail_on or WARNING) for result in results):
        statuses.append(REFUSED_STATUS)
    if format_ == JSON:
        records = [*(result.to_dict() for result in results), *(error.record() for error in errors)]
        terminal.json_text(records if len(given) > 1 or is_collection(given[0][0]) else records[0])
    elif format_ == SARIF:
        from lora_inspect.ops.check import as_sarif

        terminal.json_text(as_sarif(results, os.curdir))
    for error in errors:
        terminal.error(error.says)
    sys.exit(max(statuses, default=0))


def _checked(
    given: "list[tuple[str, Settings]]", tensors: bool, skip_hashes: bool, shown: bool
) -> "tuple[list[CheckResult], list[CommandFailure]]":
    """Check every file and print the problems; return failures of invalid paths, too."""
    from lora_inspect.ops.check import check as checked
    from lora_inspect.ops.check import found_in

    results: list[CheckResult] = []
    errors: list[CommandFailure] = []
    files: list[tuple[str, Settings]] = []
    for path, settings in given:
        try:
            found = found_in(path)
            own = settings._replace(of_several=found != [path])
            files += [(file, own) for file in found]
        except LoraInspectError:
            raise
        except OSError as error:
            errors.append(failure(path, error))
    with bar_below("Reading", sum(stored_bytes(path) for path, _ in files), percent) as bar:
        for path, settings in files:
            try:
                results.append(checked(path, settings, tensors, bar.advance, skip_hashes))
            except Exception as error:  # one file that cannot be read leaves the others their results
                bar.above(partial(show_defect, error))
                errors.append(failure(path, error))
                continue
    if shown and len(results) > 1:
        print_several(results, tensors)
    elif shown and results:
        print_problems(results[0].path, results[0].problems, results[0].fixable, tensors)
    if shown and len(results) == 1 and (sizes := results[0].sizes):
        from lora_inspect.cli.info.norms_table import not_told, table_lines

        sheet = terminal.Sheet(terminal.columns())
        terminal.laid_out([*table_lines(sheet, sizes), *not_told(sheet, sizes)])
    if shown and any(result.problems for result in results):
        _print_summary(results)
    return results, errors


def _fixed(given: "list[tuple[str, Settings]]", output: str, tensors: bool, force: bool) -> "CheckResult":
    from lora_inspect.ops.check import fix, found_in

    if len(given) > 1 or len(files := found_in(given[0][0])) > 1:
        raise click.UsageError("--fix fixes a single file; name only one.")
    with bar_below("Mending", stored_bytes(files[0]), percent) as bar:
        return fix(files[0], output, given[0][1], tensors, force, bar.advance)
