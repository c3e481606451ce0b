"""A header as nearly all programs write it, taken apart by one expression. Standard library only.

It says of each tensor its type, shape and range, in this order, with no blanks or one behind each sign. Whatever is
spelled otherwise, is too long, or is wrong in any way is left to `HeaderText`, which says why.
"""

import re
from functools import cache
from itertools import chain
from math import prod
from operator import itemgetter, sub
from typing import Any

from lora_inspect.caching import Remembered
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.bounds import KEY_BYTES, METADATA_KEYS
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.strict_json import is_unicode, parse_plain

# So short a text cannot become so many objects that it matters, whatever stands in it.
LONGEST = 1 << 20
METADATA = "__metadata__"
_LONGEST_NAME = KEY_BYTES // 4
# With as many digits a number is in the range of every reader.
_MOST_DIGITS = 18
_NUMBER = f"(?:0|[1-9][0-9]{{0,{_MOST_DIGITS - 1}}})"
_ENDS = " \t\r\n"
# The tables of the files that were read last, by all that stands in the headers behind the metadata: files of one
# trainer with the same settings have the same.
_LONGEST_REMEMBERED = 1 << 18
_tables: Remembered[tuple[str, int], "Table"] = Remembered(16)


class Table(NamedTuple):
    """The tensors of a header in the order of their ranges, which begin and end in the data behind it: by columns."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]


class _Spelling:
    """The signs of a header: `blank` is what stands behind a colon and a comma."""

    def __init__(self, blank: str) -> None:
        comma, colon = f",{blank}", f":{blank}"
        self.start = f'{{"{METADATA}"{colon}'
        self.comma = comma
        kind = rf'"([A-Z0-9_]{{1,16}}"{comma}"shape"{colon}\[[0-9{comma}]{{0,250}})\]'
        self._before_shape = f'"{comma}"shape"{colon}['
        self._entry = re.compile(
            rf'"([^"\\\x00-\x1f]{{0,{_LONGEST_NAME}}})"{colon}\{{"dtype"{colon}{kind}{comma}'
            rf'"data_offsets"{colon}\[({_NUMBER}){comma}({_NUMBER})\]\}}(?:{comma}(?=")|\}}\Z)'
        )
        signs = f'""{colon}{{"dtype"{colon}"]{comma}"data_offsets"{colon}[{comma}]}}'
        self._length, self._between = len(signs), len(comma)

    def entries(self, text: str) -> list[tuple[str, str, str, str]] | None:
        """(name, kind, start, stop) of each entry in the end of a header; None where anything else is in it."""
        found = self._entry.findall(text)
        length = sum(map(len, chain.from_iterable(found)))
        signs = len(found) * self._length + (len(found) - 1) * self._between + len("}")
        return found if found and length + signs == len(text) else None

    def kind(self, text: str) -> tuple[str, tuple[int, ...], int] | None:
        """Type, shape and size in bytes; None for what no tensor has."""
        dtype, _, dimensions = text.partition(self._before_shape)
        digits = dimensions.split(self.comma) if dimensions else []
        if dtype not in BITS or not all(map(_is_number, digits)):
            return None
        shape = tuple(map(int, digits))
        needed = prod(shape) * BITS[dtype]
        return None if needed % 8 or not needed else (dtype, shape, needed // 8)


def _is_number(digits: str) -> bool:
    """Whether it is spelled as JSON has a whole number, with no more digits than `_NUMBER` takes."""
    return digits.isdecimal() and len(digits) <= _MOST_DIGITS and (digits[0] != "0" or digits == "0")


# Made for the first file that is spelled so: an expression takes longer to compile than to use.
_spelling = cache(_Spelling)


def read_plain(content: bytes | bytearray, room: int) -> tuple[Table, dict[str, str]] | None:
    """The tensors, which fill the `room` behind the header, and the metadata.

    None where the header is not as nearly all are, or has a fault.
    """
    try:
        text = content.decode().rstrip(_ENDS)
    except UnicodeDecodeError:
        return None
    spelling = _spelling(" " if '": {"dtype": "' in text else "")
    metadata: dict[str, str] = {}
    start = 1
    if text.startswith(spelling.start):
        about = _metadata(text, len(spelling.start))
        if about is None or not text.startswith(spelling.comma, about[1]):
            return None
        metadata, start = about[0], about[1] + len(spelling.comma)
    elif not text.startswith("{"):
        return None
    table = _table_as_before(spelling, text[start:], room)
    return table and (table, metadata)


def _table_as_before(spelling: _Spelling, text: str, room: int) -> Table | None:
    """What `_table` finds in the text."""
    if len(text) > _LONGEST_REMEMBERED:
        return _table(spelling, text, room)
    table = _tables.get((text, room))
    if table is None and (table := _table(spelling, text, room)):
        _tables.put((text, room), table)
    return table


def _metadata(text: str, start: int) -> tuple[dict[str, str], int] | None:
    """The map of strings that begins there, and the position behind it; None where it is none."""
    try:
        found, stop = parse_plain(text, start)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or len(found) > METADATA_KEYS or not all(map(_is_text, found.values())):
        return None
    # Only what is spelled with an escape can be half of a pair.
    if "\\u" in text[start:stop] and not is_unicode("".join(chain.from_iterable(found.items()))):
        return None
    return None if max(map(len, found), default=0) > _LONGEST_NAME else (found, stop)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _table(spelling: _Spelling, text: str, room: int) -> Table | None:
    """The tensors of the entries, each with the bytes that its type and shape need, one behind the other.

    None where not so.
    """
    entries = spelling.entries(text)
    if not entries:
        return None
    names, kinds, firsts, lasts = zip(*entries, strict=True)
    known = {kind: spelling.kind(kind) for kind in dict.fromkeys(kinds)}
    told = [found for kind in kinds if (found := known[kind])]
    if len(told) < len(kinds) or len({METADATA, *names}) <= len(names):
        return None
    rows = zip(names, *zip(*told, strict=True), map(int, firsts), map(int, lasts), strict=True)
    names, dtypes, shapes, sizes, starts, stops = zip(*sorted(rows, key=itemgetter(4)), strict=True)
    is_whole = starts == (0, *stops[:-1]) and stops[-1] == room and tuple(map(sub, stops, starts)) == sizes
    return Table(names, dtypes, shapes, starts, stops) if is_whole else None
