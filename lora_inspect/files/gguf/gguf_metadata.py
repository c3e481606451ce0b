"""The metadata of a GGUF file: keys with numbers, strings and lists of them. Standard library only."""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.bounds import JSON_ITEMS, KEY_BYTES, METADATA_CHARACTERS, METADATA_KEYS
from lora_inspect.files.gguf.gguf_format import ARRAY, BOOL, NUMBERS, STRING
from lora_inspect.files.input_file import InputFile

AGAIN = "fetch the file again"
_PIECE_BYTES = 1 << 16
# Only language models say how their text becomes tokens, with lists of all tokens.
OF_TOKENS = "tokenizer."


class Value(NamedTuple):
    """A value of the metadata: the number of its type, where it begins, and what it is."""

    type: int
    start: int
    value: Any


class Cursor:
    """Reads a file from a position on, a piece at a time. Raises LoraInspectError where there is less than asked."""

    def __init__(self, source: InputFile, start: int) -> None:
        self.file, self.position, self.size = source.path, start, source.identity.bytes
        self.identity = source.identity
        self._source = source
        self._piece, self._first = b"", start

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.check(count)
        begin = self.position - self._first
        if begin + count > len(self._piece):
            length = min(max(count, _PIECE_BYTES), self.size - self.position)
            self._piece, self._first, begin = bytes(self._source.read(self.position, length)), self.position, 0
        self.position += count
        return self._piece[begin : begin + count]

    def check(self, count: int) -> None:
        """Raises LoraInspectError where the file ends before `count` more bytes."""
        if count > self.size - self.position:
            raise LoraInspectError(
                f"{self.file}: its GGUF header goes beyond the end of the file at byte {self.size}: it is truncated or "
                f"damaged; {AGAIN}."
            )

    def number(self, form: str) -> Any:
        """The next number, spelled as `struct` does."""
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, longest: int) -> str:
        """The next string, of up to `longest` bytes."""
        length = self.number("Q")
        self.check(length)
        if length > longest:
            raise LoraInspectError(f"{self.file}: a string of its header has {length:,} bytes, {longest:,} at most.")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise LoraInspectError(f"{self.file}: its GGUF header holds text that is no UTF-8; {AGAIN}.") from None


# What raises LoraInspectError once a key shows that a file is not what it is read as: (the key, what is known by then).
Expect = Callable[[str, Mapping[str, Value]], None]


def read_values(cursor: Cursor, keys: int, expect: Expect) -> dict[str, Value]:
    """The metadata of a file; `expect` is told of each key once it is read, and of those of tokens before too."""
    values: dict[str, Value] = {}
    room = METADATA_CHARACTERS
    for _ in range(keys):
        key = cursor.text(KEY_BYTES)
        if key.startswith(OF_TOKENS):
            expect(key, values)
        if key in values:
            raise LoraInspectError(f"{cursor.file}: its GGUF header has {key} twice; write the file anew.")
        kind, start = cursor.number("I"), cursor.position
        value = _read_array(cursor, key, room) if kind == ARRAY else _read_value(cursor, key, kind, room)
        values[key] = Value(kind, start, value)
        expect(key, values)
        room -= cursor.position - start + len(key)
        if room < 0:
            raise LoraInspectError(
                f"{cursor.file}: its metadata has more than {METADATA_CHARACTERS:,} bytes; write the file anew with "
                "less of it."
            )
    return values


def first_value(cursor: Cursor, keys: int, wanted: str) -> Any:
    """The value of one key; None where it is not among the keys, or stands behind those of models alone.

    Raises LoraInspectError where the file ends before.
    """
    for _ in range(min(keys, METADATA_KEYS)):
        key = cursor.text(KEY_BYTES)
        if key.startswith(OF_TOKENS):
            return None
        kind, room = cursor.number("I"), METADATA_CHARACTERS
        value = _read_array(cursor, key, room) if kind == ARRAY else _read_value(cursor, key, kind, room)
        if key == wanted:
            return value
    return None


def _read_value(cursor: Cursor, key: str, kind: int, room: int) -> Any:
    if kind == STRING:
        return cursor.text(max(room, 0))
    if kind not in NUMBERS:
        raise LoraInspectError(f"{cursor.file}: {key} has a value of the unknown type {kind}; {AGAIN}.")
    if kind == BOOL:
        return cursor.take(1) != b"\0"
    return cursor.number(NUMBERS[kind])


def _read_array(cursor: Cursor, key: str, room: int) -> list[Any]:
    kind, count = cursor.number("I"), cursor.number("Q")
    # An element has one byte at least.
    cursor.check(count)
    if count > JSON_ITEMS or count > room:
        raise LoraInspectError(f"{cursor.file}: {key} is a list of {count:,} values, too many for a header.")
    found = []
    for _ in range(count):
        before = cursor.position
        found.append(_read_value(cursor, key, kind, room))
        room -= cursor.position - before
    return found


def as_text(value: Any) -> str:
    """A value in the metadata of a checkpoint: numbers and lists as JSON, strings as they are."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
