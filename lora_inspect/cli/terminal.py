"""Output on the terminal: results on stdout, the rest on stderr, in lines that only the program breaks.

`wrapped` breaks sentences at blanks into lines that fit, and counts wide letters by their width. `Sheet` lays out
labels, sentences and commands for the width of one terminal. `sentence_of` gives the sentence for an exception that
ends a command, or a part of it.
"""

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from lora_inspect.cli.complete_outputs import explain_unprinted
from lora_inspect.errors import LoraInspectError, kind_of, of_system
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.system import IS_WINDOWS
from lora_inspect.sentences import SENTENCE, VALUE, printable, shortened, unlike_command, width
from lora_inspect.version import __version__

if TYPE_CHECKING:
    from lora_inspect.ops.folder import Outcome

# How a piece of a line looks on a terminal that has colours, by the numbers that ECMA-48 has for it.
PLAIN, BOLD, FAINT, WRONG, DOUBTFUL, RIGHT = "", "1", "2", "1;31", "33", "32"
# The width of what is no terminal, and the least that lines are laid out for.
_COLUMNS, _LEAST_COLUMNS = 80, 40
# Where the consoles of Windows obey sequences without being asked to.
_OBEYING_CONSOLES = ("WT_SESSION", "ANSICON", "TERM", "TERM_PROGRAM")
# A letter of one column.
_STAND_IN = "x"


class StyledText(NamedTuple):
    """A part of a line with one of the looks above; its text is printable."""

    text: str
    look: str = PLAIN


def has_columns() -> bool:
    """Return True if results have a certain width: that of a terminal or of COLUMNS."""
    return (sys.stdout is not None and sys.stdout.isatty()) or os.environ.get("COLUMNS", "").isdecimal()


def columns() -> int:
    """Return the width for the layout of results: COLUMNS, or else the terminal's, or else 80."""
    if not has_columns():
        return _COLUMNS
    import shutil  # with all archivers, which take longer than the rest of this module

    return max(shutil.get_terminal_size((_COLUMNS, 0)).columns, _LEAST_COLUMNS)


# The room of a line that nothing limits.
ENDLESS = 10_000


def room() -> int:
    """Return the width for the layout of tables: that of `columns`, or endless if nothing is cut."""
    return columns() if has_columns() else ENDLESS


def has_colours() -> bool:
    """Return True if results have colours: on a terminal, unless NO_COLOR is set.

    FORCE_COLOR turns them on elsewhere, too.
    """
    environment = os.environ
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    if environment.get("FORCE_COLOR"):
        return True
    obeys = not IS_WINDOWS or any(environment.get(name) for name in _OBEYING_CONSOLES)
    return obeys and sys.stdout is not None and sys.stdout.isatty()


def spelled(text: str) -> str:
    """Return printable text in the encoding of the result, with escapes for other letters."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text if text.isascii() else text.encode(encoding, "backslashreplace").decode(encoding)


def laid_out(lines: Iterable[Sequence[StyledText]]) -> None:
    """Print lines of the result made for the terminal's width; their text is `spelled` already."""
    paint = _painted if has_colours() else (lambda piece: piece.text)
    _write(sys.stdout, ["".join(map(paint, pieces)).rstrip() for pieces in lines])


def _painted(piece: StyledText) -> str:
    return f"\x1b[{piece.look}m{piece.text}\x1b[0m" if piece.look and piece.text else piece.text


def serve_any_encoding() -> None:
    """Let both streams escape letters that their encoding lacks.

    Names in files contain more letters than some terminals know.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def line(text: str) -> None:
    """Print a line of the result."""
    _write(sys.stdout, [shortened(text, SENTENCE)])


def row(text: str) -> None:
    """Print a line of the result about one of several files, over several lines on a terminal."""
    _write(sys.stdout, _in_rows(text, sys.stdout))


def _in_rows(text: str, stream: TextIO | None) -> list[str]:
    """Return a sentence in lines that fit a terminal, further ones indented; in one line for any other stream."""
    shown = spelled(shortened(text, SENTENCE))
    if stream is None or not stream.isatty() or width(shown) <= columns():
        return [shown]
    first, *others = wrapped(shown, columns() - len(_HANGING))
    return [first, *(_HANGING + piece for piece in others)]


def aside(text: str) -> None:
    """Print a line that is no part of the result."""
    _write(sys.stderr, [shortened(text, SENTENCE)])


def note(text: str) -> None:
    """Print a note: a sentence on a setting or an action that was not needed."""
    _write(sys.stderr, [f"Note: {shortened(text, SENTENCE)}"])


def error(text: str) -> None:
    """Print the reason why a command, or a part of it, is refused."""
    _write(sys.stderr, [f"Error: {shortened(text, SENTENCE)}"])


def traceback(text: str) -> None:
    """Print the lines of a traceback, for developers who fix a defect."""
    _write(sys.stderr, map(printable, text.rstrip("\n").split("\n")))


def usage(text: str) -> None:
    """Print how a command is used, for someone who used it wrongly; the text is printable already."""
    _write(sys.stderr, [text])


def facts(named: Iterable[tuple[str, str]]) -> None:
    """Print a line per fact: its name and a sentence."""
    _write(sys.stdout, _aligned([(shortened(name), shortened(says, SENTENCE)) for name, says in named]))


def columns_of(rows: Iterable[Sequence[object]]) -> None:
    """Print rows of cells in columns without headers; a cell is shortened as in `table`."""
    _write(sys.stdout, _aligned(_cells(rows)))


def table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> None:
    """Print rows of cells below their headers; a cell may be empty.

    A cell is shortened to the width of a name; JSON has complete values.
    """
    from tabulate import tabulate  # loads importlib.metadata, which takes longer than most commands that print columns

    cells = _cells(rows)
    dashes = ["-" * max(map(width, column)) for column in zip(headers, *cells, strict=True)]
    cells = [list(headers), dashes, *cells]
    # tabulate counts letters: it lays out stand-ins of the cells, a letter for each column of the terminal.
    stand_ins = [[_STAND_IN * width(cell) for cell in row] for row in cells]
    texts = iter([cell for row in cells for cell in row if width(cell)])
    aligned = tabulate(stand_ins, tablefmt="plain", disable_numparse=True).split("\n")
    _write(sys.stdout, [re.sub(f"{_STAND_IN}+", lambda _: next(texts), line).rstrip() for line in aligned])


def _cells(rows: Iterable[Sequence[object]]) -> list[list[str]]:
    cells = [["" if cell is None else shortened(str(cell)) for cell in row] for row in rows]
    return [[unlike_command(first), *others] for first, *others in cells]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines of cells, with every column as wide as its widest cell."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell + " " * (widest - width(cell)) for cell, widest in zip(row, widths, strict=True)).rstrip()


def json_text(value: Any) -> None:
    """Print the exact value for programs, without a character that controls a terminal."""
    import json

    _write(sys.stdout, [json.dumps(value, indent=2).replace("\x7f", "\\u007f")])


def json_line(value: Any) -> None:
    """Print the value for programs in one line, spelled as `json_text` does."""
    import json

    _write(sys.stdout, [json.dumps(value).replace("\x7f", "\\u007f")])


def exact(text: str) -> None:
    """Print an exact text to a pipe or a file, or its printable lines on a terminal."""
    if sys.stdout is None or sys.stdout.isatty():
        _write(sys.stdout, map(printable, text.split("\n")))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _write(stream: TextIO | None, lines: Iterable[str]) -> None:
    if stream is None:  # a program without a console has none
        return
    try:
        stream.writelines(f"{unlike_command(text)}\n" for text in lines)
        stream.flush()
    except OSError as error:
        if stream is not sys.stderr:
            raise explain_unprinted(error) from None
        # Where errors cannot be told, the exit status is all that is left to say.


def wrapped(text: str, columns: int) -> list[str]:
    """Return printable text in lines of at most `columns`.

    A longer word is broken. Empty text is one line.
    """
    lines, taken = [""], 0
    for word in text.split():
        length = width(word)
        if lines[-1] and taken + 1 + length <= columns:
            lines[-1] += f" {word}"
            taken += 1 + length
            continue
        for piece in [word] if length <= columns else _broken(word, columns):
            if lines[-1]:
                lines.append("")
            lines[-1], taken = piece, width(piece)
    return lines


def cut(text: str, columns: int, mark: str = "…") -> str:
    """Return printable text in at most `columns`, with a mark for the middle of a longer one."""
    if width(text) <= columns:
        return text
    room = max(columns - width(mark), 0)
    head = _fitting(text, (room + 1) // 2)
    tail = _fitting(text[::-1], room - width(head))[::-1]
    while tail and not width(tail[0]):
        tail = tail[1:]  # a mark whose letter is left out
    return head + mark + tail


def _broken(word: str, columns: int) -> Iterator[str]:
    while word:
        piece = _fitting(word, columns) or word[0]
        yield piece
        word = word[len(piece) :]


def _fitting(text: str, columns: int) -> str:
    """Return as many of the first letters as the columns hold, each with its marks."""
    for at, letter in enumerate(text):
        columns -= width(letter)
        if columns < 0:
            return text[:at]
    return text


Line = Sequence[StyledText]
# What stands before a labelled line, and the columns of its label.
_INDENT, _LABEL = "  ", 13
_HANGING = "    "
# What separates columns of a table.
_GAP = "   "


class Sheet:
    """The maker of lines of at most `columns` from any texts; very long ones lose their middle."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.mark = "…" if spelled("…") == "…" else "..."

    def shown(self, text: str, most: int = VALUE) -> str:
        """Return the text in printable form."""
        return spelled(shortened(text, most))

    def cut(self, text: str) -> str:
        """Return one of several words, in half a line at most."""
        return cut(self.shown(text), self.columns // 2, self.mark)

    def sentence(self, text: str, look: str = PLAIN, mark: str = "", most: int = VALUE * 3) -> Iterator[Line]:
        """Yield a sentence over as many lines as it needs, with further ones indented.

        The `mark` precedes the first line.
        """
        shown = self.shown(text, most)
        fits = not mark and width(shown) <= self.columns
        first, *others = [shown] if fits else wrapped(shown, self.columns - len(_HANGING))
        if mark:
            yield [StyledText(f"{mark:{len(_HANGING)}}", look), StyledText(first)]
        else:
            yield [StyledText(first, look)]
        for piece in others:
            yield [StyledText(_HANGING), StyledText(piece, PLAIN if mark else look)]

    def row(self, label: str, text: str, look: str = PLAIN) -> Iterator[Line]:
        """Yield a label and its text, which has a column of its own."""
        room = self.columns - len(_INDENT) - _LABEL
        for number, piece in enumerate(wrapped(self.shown(text), room)):
            yield [StyledText(f"{_INDENT}{'' if number else label:{_LABEL}}", FAINT), StyledText(piece, look)]

    def command(self, command: str) -> Iterator[Line]:
        """Yield a command line to copy, which is never broken."""
        yield [StyledText(_HANGING), StyledText(spelled(command), BOLD)]

    def fix(self, text: str, command: str) -> Iterator[Line]:
        """Add the purpose of a command below a problem, and the command."""
        for piece in wrapped(self.shown(text), self.columns - len(_HANGING)):
            yield [StyledText(_HANGING), StyledText(piece)]
        yield from self.command(command)

    def row_of_command(self, label: str, command: str) -> Iterator[Line]:
        """Add a label and text to copy, which is never broken."""
        yield [StyledText(f"{_INDENT}{label:{_LABEL}}", FAINT), StyledText(spelled(command), BOLD)]

    def table(self, rows: Sequence[Sequence[str]], headers: Sequence[str]) -> Iterator[Line]:
        """Add rows below their headers, right-aligned; the first column gets the remaining width.

        A first cell that is wider has lines of its own above its row.
        """
        cells = [[self.shown(unlike_command(first)), *map(self.shown, others)] for first, *others in rows]
        widths = [max(map(width, column)) for column in zip(headers, *cells, strict=True)]
        least = len(_INDENT) + width(headers[0]) + sum(widths[1:])
        gap = _GAP if least + len(_GAP) * (len(widths) - 1) <= self.columns else " "
        room = self.columns - len(_INDENT) - sum(widths[1:]) - len(gap) * (len(widths) - 1)
        widths[0] = max(min(widths[0], room), width(headers[0]))
        for number, (first, *others) in enumerate((headers, *cells)):
            if width(first) > widths[0]:
                yield from ([StyledText(_INDENT + piece)] for piece in wrapped(first, self.columns - len(_INDENT)))
                first = ""
            right = (" " * (columns - width(cell)) + cell for cell, columns in zip(others, widths[1:], strict=True))
            text = _INDENT + first + " " * (widths[0] - width(first)) + "".join(gap + cell for cell in right)
            yield [StyledText(cut(text, self.columns, self.mark), PLAIN if number else FAINT)]


# Set to anything at all, it has defects shown with their traceback.
DEBUG = "LORA_INSPECT_DEBUG"

# How torch and the loader of libraries say that memory was refused.
_NO_MEMORY = ("not enough memory", "allocate memory", "out of memory", "failed to map segment", "bad_alloc")


def sentence_of(error: Exception, path: str = "") -> str:
    """Return our own sentence, or one about the system's error or a defect.

    `path` is the file of the error.
    """
    if isinstance(error, LoraInspectError):
        return str(error)
    if isinstance(error, OSError):
        return str(of_system(error, path))
    about = path and f"{path}: "
    if _is_of_memory(error):
        return f"{about}there is not enough memory; close other programs, or use a machine with more."
    if isinstance(error, ImportError):
        return f"{about}a library that lora-inspect needs cannot be loaded ({error}); install it again."
    return (
        f"{about}internal error in lora-inspect {__version__} ({type(error).__name__}: {error}); report it "
        f"with the command, the files' headers and the output of {DEBUG}=1."
    )


class CommandFailure(NamedTuple):
    """The failure of a command or a part of it: file, sentence, code of its kind, exit status and fix.

    `path` is None if no single file is at fault. `fix` is the end of the sentence; it may be empty.
    """

    path: str | None
    says: str
    code: str
    status: int
    fix: str = ""

    def record(self) -> dict[str, str | None]:
        """Return the failure as JSON has it."""
        return {"path": self.path, "error": self.says, "code": self.code}


def failure(path: str | None, error: Exception) -> CommandFailure:
    """Return the failure for an error that came with a file."""
    kind = kind_of(error)
    fix = error.fix if isinstance(error, LoraInspectError) else ""
    return CommandFailure(path, sentence_of(error, path or ""), kind.code, kind.status, fix)


def failures_of(outcomes: "Iterable[Outcome[Any]]") -> dict[str, CommandFailure]:
    """Return the failures of a folder's adapters by path; print defects on request of the environment."""
    found = {}
    for one in outcomes:
        if one.error:
            show_defect(one.error)
            found[one.path] = failure(one.path, one.error)
    return found


def tell_counts(outcomes: "Sequence[Outcome[Any]]", done: str, as_is: str = "") -> None:
    """Print how many adapters of a folder need nothing, in the words `as_is`, are `done`, were skipped, and failed."""
    right, skipped, failed = (
        sum(map(bool, own))
        for own in ((o.is_right for o in outcomes), (o.skipped for o in outcomes), (o.error for o in outcomes))
    )
    written = len(outcomes) - right - skipped - failed
    counts = {as_is: right, done: written, "skipped": skipped, "failed": failed}
    line(", ".join(f"{count} {word}" for word, count in counts.items() if count or word == done))


def tell_skipped(outcomes: "Iterable[Outcome[Any]]") -> None:
    """Note the checkpoints of a folder that were skipped, with the reasons."""
    for one in outcomes:
        if one.skipped:
            _write(sys.stderr, _in_rows(f"Note: {one.path}: skipped, as {one.skipped}.", sys.stderr))


def exit_with(failures: Mapping[str, CommandFailure]) -> None:
    """Print the failures of a folder's adapters and exit with their status, if there are any.

    A fix that several share is printed once, after them.
    """
    told = shared_last(list(failures.values()))
    for says, way_out in with_shared_ways_out([(one.says, one.fix) for one in told]):
        _write(sys.stderr, _in_rows(f"Error: {says}", sys.stderr))
        if way_out:
            _write(sys.stderr, _in_rows(f"Note: {way_out}", sys.stderr))
    if failures:
        sys.exit(max(one.status for one in failures.values()))


def shared_last(failures: Sequence[CommandFailure]) -> list[CommandFailure]:
    """Return the failures; the ones that share a fix are last and together."""
    from collections import Counter  # only failures need it

    counts = Counter(one.fix for one in failures)
    return sorted(failures, key=lambda one: one.fix if counts[one.fix] > 1 else "")


def with_shared_ways_out(ends: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield each sentence, and a shared fix after the last of its sentences.

    A sentence that ends with a shared fix is yielded without it. A fix may be empty.
    """
    from collections import Counter  # only failures need it

    left = Counter(way_out for _, way_out in ends)
    shared = {way_out for way_out, count in left.items() if way_out and count > 1}
    for says, way_out in ends:
        left[way_out] -= 1
        if way_out in shared and says.endswith(f"; {way_out}."):
            yield f"{says.removesuffix(f'; {way_out}.')}.", "" if left[way_out] else f"for each of these: {way_out}."
        else:
            yield says, ""


def json_failure(ended: CommandFailure) -> None:
    """Print a failure for programs; nothing if the output cannot be written, as that may be the failure."""
    with suppress(OSError):
        json_text(ended.record())


def show_defect(error: Exception) -> None:
    """Print the traceback of an unforeseen error, if the environment asks for it."""
    if os.environ.get(DEBUG) and not isinstance(error, (LoraInspectError, OSError)):
        from traceback import format_exception

        traceback("".join(format_exception(error)))


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, ImportError)) and any(words in str(error) for words in _NO_MEMORY)
    )
