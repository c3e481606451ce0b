"""Sentences in lines that fit a terminal: broken at blanks, wide letters counted by their width."""

from collections.abc import Iterator

from lora_inspect.escape import width


def wrapped(text: str, columns: int) -> list[str]:
    """Printable text in lines of at most so many columns; a word that is longer is broken. Empty text is one line."""
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
    """Printable text in at most so many columns, a longer one with a mark in the place of its middle."""
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
    """As many of the first letters as the columns hold, each with its marks."""
    for at, letter in enumerate(text):
        columns -= width(letter)
        if columns < 0:
            return text[:at]
    return text
