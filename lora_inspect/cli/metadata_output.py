"""Metadata for people: JSON within a value is unfolded, long values are cut, and each key has its lines."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.strict_json import is_shallow, parse_json
from lora_inspect.sentences import shortened, unlike_command, width

# A value takes at most so many lines, an object or a list shows so many of its members, and they stand so deep.
_LINES, _MEMBERS, _DEEPEST = 3, 12, 5
# An item of a list that is no longer than this as JSON stays in one line.
_SHORT_ITEM = 60
# Labels up to this width stand in a column of their own; longer ones push their value aside.
_LABEL = 36
_INDENT, _GAP = "  ", "  "
# The least that `shortened` keeps, and the least room that a value is broken into.
_LEAST_TEXT, _LEAST_ROOM = 100, 20
_DATA_URI = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+);base64,")


class _Row(NamedTuple):
    label: str
    text: str | None


def metadata_lines(metadata: Mapping[str, str], columns: int) -> Iterator[str]:
    """Yield the lines of the whole metadata in order of its keys, for a terminal of `columns`."""
    rows = [row for key in sorted(metadata) for row in _rows(unlike_command(shortened(key)), _parsed(metadata[key]), 0)]
    column = max((width(row.label) for row in rows if row.text is not None and width(row.label) <= _LABEL), default=0)
    for row in rows:
        yield from _lines(row, column, columns)


def unfolded(value: str) -> Any:
    """Return the object or list of a JSON value, or None."""
    if not value.lstrip().startswith(("{", "[")):
        return None
    try:
        found = parse_json(value)
    except ValueError:
        return None
    return found if is_shallow(found) else None


def _parsed(value: str) -> Any:
    found = unfolded(value)
    return value if found is None else found


def _rows(label: str, value: Any, depth: int, is_item: bool = False) -> Iterator[_Row]:
    """Return a value under its label, with its members indented."""
    label = _INDENT * depth + label
    members = [] if depth == _DEEPEST or (is_item and len(_text(value)) <= _SHORT_ITEM) else _members(value)
    if not members:
        yield _Row(label, _text(value))
        return
    yield _Row(label, None)
    for name, member in members[:_MEMBERS]:
        yield from _rows(shortened(name), member, depth + 1, isinstance(value, list))
    if len(members) > _MEMBERS:
        yield _Row(f"{_INDENT * (depth + 1)}… {len(members) - _MEMBERS:,} more", None)


def _members(value: Any) -> list[tuple[str, Any]]:
    """Return the members of an object, or of a list that holds more than plain values.

    Of many numbers, as counts of tags are, the largest come first.
    """
    if isinstance(value, list):
        return [(str(number), one) for number, one in enumerate(value)] if any(map(_is_nested, value)) else []
    if not isinstance(value, dict):
        return []
    found = list(value.items())
    if len(found) > _MEMBERS and all(type(one) in (int, float) for _, one in found):
        found.sort(key=lambda item: -item[1])
    return found


def _is_nested(value: Any) -> bool:
    return isinstance(value, (dict, list)) and bool(value)


def _text(value: Any) -> str:
    """Return a value in one line of text."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if uri := _DATA_URI.match(value):
        size = (len(value) - uri.end()) * 3 // 4 - value[-2:].count("=")
        return f"{uri['kind']}, {size:,} bytes"
    return value or '""'


def _lines(row: _Row, column: int, columns: int) -> Iterator[str]:
    if row.text is None:
        yield row.label
        return
    start = row.label + " " * (column - width(row.label)) + _GAP
    room = columns - width(start)
    if room < _LEAST_ROOM:
        yield row.label
        start, room = _INDENT * 2, max(columns - len(_INDENT * 2), _LEAST_ROOM)
    text = shortened(row.text, max(room * _LINES, _LEAST_TEXT))
    for piece in _pieces(text, room):
        yield start + piece
        start = " " * width(start)


def _pieces(text: str, room: int) -> Iterator[str]:
    """Yield the text in pieces of at most `room` columns.

    They break at a blank if that fills more than half a line.
    """
    piece, taken = "", 0
    for character in text:
        if taken + width(character) > room:
            blank = piece.rfind(" ")
            cut = blank if blank > len(piece) // 2 else len(piece)
            yield piece[:cut]
            piece = piece[cut:].lstrip(" ")
            taken = width(piece)
        piece += character
        taken += width(character)
    yield piece
