"""What `check` prints for people: a line for each problem, and on a terminal lines of its width below each file."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lora_inspect.cli import terminal
from lora_inspect.cli.terminal import BOLD, DOUBTFUL, FAINT, PLAIN, RIGHT, WRONG, Piece, spelled
from lora_inspect.cli.wrapped import wrapped
from lora_inspect.escape import SENTENCE, shortened
from lora_inspect.reading.model.evidence import ERROR, NOTE, SEVERITIES, WARNING, Problem
from lora_inspect.sentences import counted, listed

if TYPE_CHECKING:
    from lora_inspect.ops.check import CheckResult

_LOOKS = {ERROR: WRONG, WARNING: DOUBTFUL, NOTE: FAINT}
_CLEAN = "no problems"
# Of a code in one file; JSON and SARIF have all.
_MOST = 5


def print_problems(path: str, problems: Sequence[Problem]) -> None:
    """What is wrong with one file, the first few of each code; a single line where nothing is."""
    problems = list(_few(problems))
    if sys.stdout is not None and sys.stdout.isatty():
        terminal.laid_out(_laid_out(path, problems))
        return
    for one in problems:
        terminal.line(f"{path}: {_sentence(one)}")
    if not problems:
        terminal.line(f"{path}: {_CLEAN}")


def print_mended(result: "CheckResult") -> None:
    """What was done to a file, where it is, and what is wrong with it still."""
    for sentence in result.mended:
        terminal.line(f"{result.path}: mended: {sentence}.")
    print_problems(result.output or result.path, result.left)
    terminal.line(f"wrote {result.output}")


def print_summary(results: "Iterable[CheckResult]") -> None:
    """How much of what was found, and what --fix would do."""
    results = list(results)
    counts = Counter(one.severity for result in results for one in result.problems)
    told = [counted(counts[severity], severity) for severity in reversed(SEVERITIES) if counts[severity]]
    fixable = sum(one.code in result.fixable for result in results for one in result.problems)
    mends = f"; --fix -o OUT mends {fixable} of them" if fixable else ""
    terminal.line(f"{counted(len(results), 'file')}: {listed(told) or _CLEAN}{mends}")


def _few(problems: Sequence[Problem]) -> Iterable[Problem]:
    """The problems, with one that counts the others behind the first ones of a code."""
    totals, told = Counter(one.code for one in problems), Counter[str]()
    for one in problems:
        told[one.code] += 1
        if told[one.code] <= _MOST:
            yield one
        elif told[one.code] == _MOST + 1:
            yield one._replace(message=f"{totals[one.code] - _MOST:,} more of these; --json has all")


def _sentence(problem: Problem) -> str:
    return f"{problem.severity} {problem.code}: {problem.message}."


def _laid_out(path: str, problems: Sequence[Problem]) -> Iterable[list[Piece]]:
    name = spelled(shortened(path))
    if not problems:
        yield [Piece(f"{name}: "), Piece(_CLEAN, RIGHT)]
        return
    yield [Piece(name, BOLD)]
    for one in problems:
        first, *others = wrapped(spelled(shortened(_sentence(one), SENTENCE)), terminal.columns() - 4)
        severity, blank, rest = first.partition(" ")
        yield [Piece("  "), Piece(severity, _LOOKS[one.severity]), Piece(blank + rest)]
        yield from ([Piece(f"    {line}", PLAIN)] for line in others)
