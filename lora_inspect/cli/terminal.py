"""The one way out to the terminal: results on stdout, the rest on stderr, in lines that only the program breaks."""

import io
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

import click

from lora_inspect.printable import SENTENCE, printable, shortened, width


def serve_any_encoding() -> None:
    """Lets both streams write letters that their encoding lacks: names in files know more than some terminals."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def line(text: str) -> None:
    """A line of the result."""
    _write(sys.stdout, [shortened(text, SENTENCE)])


def aside(text: str) -> None:
    """A line that is no part of the result."""
    _write(sys.stderr, [shortened(text, SENTENCE)])


def note(text: str) -> None:
    """What was said or done without need."""
    _write(sys.stderr, [f"Note: {shortened(text, SENTENCE)}"])


def error(text: str) -> None:
    """Why a command, or a part of it, is refused."""
    _write(sys.stderr, [f"Error: {shortened(text, SENTENCE)}"])


def traceback(text: str) -> None:
    """The lines of a traceback, for those who mend a defect."""
    _write(sys.stderr, map(printable, text.rstrip("\n").split("\n")))


def wrong_usage(wrong: click.ClickException) -> None:
    """What is wrong with the command line, in click's words; they repeat arguments, which may hold anything."""
    if isinstance(wrong, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        with suppress(OSError):
            wrong.show()  # the help alone
        return
    if isinstance(wrong, click.UsageError) and wrong.ctx:
        hint = f"Try '{printable(wrong.ctx.command_path)} --help' for help."
        _write(sys.stderr, [wrong.ctx.get_usage(), hint, ""])
    error(wrong.format_message())


def facts(named: Iterable[tuple[str, str]]) -> None:
    """A line for each fact: its name, and what is known as a sentence."""
    _write_columns([(shortened(name), shortened(says, SENTENCE)) for name, says in named])


def table(rows: Iterable[Sequence[object]], headers: Sequence[str] = ()) -> None:
    """Rows of cells, None empty, each cell cut to what a name may take; whole values are what JSON is for."""
    cells = [["" if cell is None else shortened(str(cell)) for cell in row] for row in rows]
    _write_columns(cells, headers)


def json_text(value: Any) -> None:
    """The value for programs: exact, and without a character that a terminal obeys, as JSON can spell them all."""
    import json

    _write(sys.stdout, [json.dumps(value, indent=2).replace("\x7f", "\\u007f")])


def _write_columns(rows: Sequence[Sequence[str]], headers: Sequence[str] = ()) -> None:
    above = [headers] if headers else []
    widths = [max(map(width, column)) for column in zip(*above, *rows, strict=True)]
    dashes = [["-" * columns for columns in widths]] if headers else []
    lines = (
        "  ".join(cell + " " * (columns - width(cell)) for cell, columns in zip(row, widths, strict=True)).rstrip()
        for row in (*above, *dashes, *rows)
    )
    _write(sys.stdout, lines)


def _write(stream: TextIO | None, lines: Iterable[str]) -> None:
    if stream is None:  # a program without a console has none
        return
    try:
        stream.writelines(f"{text}\n" for text in lines)
        stream.flush()
    except OSError:
        if stream is not sys.stderr:
            raise
        # Where errors cannot be told, the exit status is all that is left to say.
