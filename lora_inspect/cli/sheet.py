"""A sheet of lines for one terminal: labels, sentences and commands, laid out for its width."""

from collections.abc import Iterator, Sequence

from lora_inspect.cli import terminal
from lora_inspect.cli.terminal import BOLD, FAINT, PLAIN, Piece
from lora_inspect.cli.wrapped import cut, wrapped
from lora_inspect.escape import VALUE, shortened, width

Line = Sequence[Piece]
# What stands before a labelled line, and the columns of its label.
_INDENT, _LABEL = "  ", 13
_HANGING = "    "
# What separates columns of a table.
_GAP = "   "


class Sheet:
    """Makes lines of at most `columns` of texts that may hold anything; very long ones lose their middle."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.mark = "…" if terminal.spelled("…") == "…" else "..."

    def shown(self, text: str, most: int = VALUE) -> str:
        """The text as the terminal may show it."""
        return terminal.spelled(shortened(text, most))

    def cut(self, text: str) -> str:
        """One of several words, in half a line at most."""
        return cut(self.shown(text), self.columns // 2, self.mark)

    def sentence(self, text: str, look: str = PLAIN, mark: str = "", most: int = VALUE * 3) -> Iterator[Line]:
        """A sentence over as many lines as it needs, further ones indented; `mark` stands before the first."""
        shown = self.shown(text, most)
        fits = not mark and width(shown) <= self.columns
        first, *others = [shown] if fits else wrapped(shown, self.columns - len(_HANGING))
        if mark:
            yield [Piece(f"{mark:{len(_HANGING)}}", look), Piece(first)]
        else:
            yield [Piece(first, look)]
        for piece in others:
            yield [Piece(_HANGING), Piece(piece, PLAIN if mark else look)]

    def row(self, label: str, text: str, look: str = PLAIN) -> Iterator[Line]:
        """A label and what stands under it, in a column of its own."""
        room = self.columns - len(_INDENT) - _LABEL
        for number, piece in enumerate(wrapped(self.shown(text), room)):
            yield [Piece(f"{_INDENT}{'' if number else label:{_LABEL}}", FAINT), Piece(piece, look)]

    def command(self, command: str) -> Iterator[Line]:
        """A command line, which is never broken: it is there to be copied."""
        yield [Piece(_HANGING), Piece(terminal.spelled(command), BOLD)]

    def mending(self, text: str, command: str) -> Iterator[Line]:
        """What a command is for, below what is wrong, and the command."""
        for piece in wrapped(self.shown(text), self.columns - len(_HANGING)):
            yield [Piece(_HANGING), Piece(piece)]
        yield from self.command(command)

    def row_of_command(self, label: str, command: str) -> Iterator[Line]:
        """A label and what is there to be copied, which is never broken."""
        yield [Piece(f"{_INDENT}{label:{_LABEL}}", FAINT), Piece(terminal.spelled(command), BOLD)]

    def table(self, rows: Sequence[Sequence[str]], headers: Sequence[str]) -> Iterator[Line]:
        """Rows below their headers; the first column is cut to what the others leave, and they stand at the right."""
        cells = [[self.shown(cell) for cell in row] for row in rows]
        widths = [max(map(width, column)) for column in zip(headers, *cells, strict=True)]
        least = len(_INDENT) + width(headers[0]) + sum(widths[1:])
        gap = _GAP if least + len(_GAP) * (len(widths) - 1) <= self.columns else " "
        room = self.columns - len(_INDENT) - sum(widths[1:]) - len(gap) * (len(widths) - 1)
        widths[0] = max(min(widths[0], room), width(headers[0]))
        for number, (first, *others) in enumerate((headers, *cells)):
            first = cut(first, widths[0], self.mark)
            right = (" " * (columns - width(cell)) + cell for cell, columns in zip(others, widths[1:], strict=True))
            text = _INDENT + first + " " * (widths[0] - width(first)) + "".join(gap + cell for cell in right)
            yield [Piece(cut(text, self.columns, self.mark), PLAIN if number else FAINT)]
