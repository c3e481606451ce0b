"""Text for people: lists and counts in sentences, and printable forms of names.

Names and metadata come from files and may hold anything; a terminal obeys nothing of their printable form.

The base of all results of functions, with a short line of their content.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

# The columns that a name or a value may take, and those of a whole sentence.
VALUE, SENTENCE = 200, 2_000
# No script puts more on a letter; what is stacked higher is drawn over the lines around it.
_MARKS_ON_A_LETTER = 4
# Letters, marks and a symbol that are drawn as a blank or not at all, save the two marks that choose between a sign
# in colour and in ink: a name that holds one looks like another name.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(
    map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE0E), *range(0xE0100, 0xE01F0)))
)


def printable(text: str) -> str:
    """Escape every invisible or misleading character, and every one that a terminal obeys.

    Names and metadata come from files and may hold anything: control sequences, line breaks, marks of direction.
    Escapes replace characters that are drawn as nothing, as another character or over other text.
    """
    return text if _is_plain(text) else "".join(_pieces(text))


def shortened(text: str, columns: int = VALUE) -> str:
    """Return the printable text in at most `columns` columns.

    A longer text loses its middle, and the number of characters that it lost takes their place. This takes as long for
    two million characters as for two thousand. `columns` must be at least 100.
    """
    if len(text) <= columns and _is_plain(text):
        return text
    reach = columns * (1 + _MARKS_ON_A_LETTER)  # more characters cannot fit
    if len(text) <= reach:
        pieces = list(_pieces(text))
        if sum(map(width, pieces)) <= columns:
            return "".join(pieces)
    room = columns - len(_left_out(len(text)))
    head = _fitting(_pieces(text[:reach]), room * 2 // 3)
    tail = _fitting(reversed(list(_pieces(text[-reach:]))), room - room * 2 // 3)
    while tail and not width(tail[-1]):
        tail.pop()  # a mark whose letter is left out
    return "".join(head) + _left_out(len(text) - len(head) - len(tail)) + "".join(reversed(tail))


def unlike_command(text: str) -> str:
    """Return a line that a build log does not take for a command: `./` precedes a `::` at its start.

    GitHub's runner obeys lines that begin with `::`, blanks aside (ActionCommand.TryParseV2 of actions/runner).
    """
    blanks = len(text) - len(text.lstrip())
    return f"{text[:blanks]}./{text[blanks:]}" if text.startswith("::", blanks) else text


def width(text: str) -> int:
    """Return the number of columns that printable text takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _left_out(count: int) -> str:
    return f" … ({count:,} more characters) … "


def _pieces(text: str) -> Iterator[str]:
    """Yield each character of the text, or its escape."""
    from unicodedata import category

    room = 0  # for marks; a first one would hang on what stands before the text
    for character in text:
        shown = character.isprintable() and character not in _UNSEEN
        if shown and category(character) in ("Mn", "Me"):
            shown, room = room > 0, room - 1
        else:
            bears_marks = shown and (character.isalnum() or not character.isascii())
            room = _MARKS_ON_A_LETTER if bears_marks else 0
        yield character if shown else character.encode("unicode_escape").decode()


def _fitting(pieces: Iterable[str], columns: int) -> list[str]:
    """Return as many of the first pieces as the columns hold."""
    fitting = []
    for piece in pieces:
        columns -= width(piece)
        if columns < 0:
            break
        fitting.append(piece)
    return fitting


def _columns(character: str) -> int:
    from unicodedata import category, east_asian_width

    if category(character) in ("Mn", "Me"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def listed(parts: Sequence[str], word: str = "and") -> str:
    """Join the parts as a sentence lists them: `A`, `A and B`, `A, B and C`; empty without any."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def counted(number: int, noun: str) -> str:
    """Write a number and its noun: `1 file`, `1,200 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def scale_in_words(scale: float | None) -> str:
    """Write a scale as it is shown, and asked for; `unknown` for None."""
    return "unknown" if scale is None else f"{scale:.6g}"


def some(names: Sequence[str], count: int) -> str:
    """List the first names, each shortened, with an ellipsis for the others: `a, b, …`."""
    return ", ".join(map(shortened, names[:count])) + (", …" if len(names) > count else "")


# The columns of the line, and those of a value in it.
_COLUMNS, _VALUE = 300, 60


class Result:
    """The base of a frozen dataclass with a `repr` of at most 300 characters, however much it holds."""

    __slots__ = ()

    def __repr__(self) -> str:
        said = [f"{name}={brief(getattr(self, name))}" for name in self.__dataclass_fields__]  # type: ignore[attr-defined]
        return bounded(type(self).__name__, said)


def bounded(name: str, said: list[str]) -> str:
    """Join the facts in the order of their fields, as many as a line holds."""
    shown = f"{name}({', '.join(said)})"
    while len(shown) > _COLUMNS:
        said = said[:-1]
        shown = f"{name}({', '.join(said)}, ...)"
    return shown


def brief(value: Any) -> str:
    """Write a value in a few words; the count of a long or large collection."""
    if isinstance(value, str):
        return repr(shortened(value, 100)[:_VALUE]) if len(value) > _VALUE else repr(value)
    if isinstance(value, Collection):
        if not value:
            return "[]"
        is_plain = len(value) <= 2 and all(isinstance(one, (str, int, float)) for one in value)
        shown = repr(value) if is_plain else ""
        return shown if shown and len(shown) <= _VALUE else f"<{len(value):,}>"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"<{type(value).__name__}>"


# How many names a line has.
_MOST_NAMES = 3
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def few(names: Sequence[str], word: str = "and", most: int = _MOST_NAMES) -> str:
    """Return the first names as a sentence lists them, with the number of the others."""
    if len(names) <= most + 1:
        return listed(names, word)
    return f"{', '.join(names[:most])} {word} {len(names) - most} more"


def size_in_words(count: int) -> str:
    """Return a number of bytes as people say it: `23 kB`, `1.2 GB`."""
    size, unit = float(count), 0
    while size >= 999.5 and unit + 1 < len(_UNITS):
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit and size < 9.95 else f"{size:.0f} {_UNITS[unit]}"
