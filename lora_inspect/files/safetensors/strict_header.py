"""The JSON of a header, read entry by entry, as strictly as the safetensors library does. Standard library only.

Only a few pieces of it are in memory at a time. So neither a long header nor a value that is small as text and large as
objects takes memory before it is refused.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from lora_inspect.errors import DamagedError, LoraInspectError
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.strict_json import (
    ENTRY_CHARACTERS,
    KEY_BYTES,
    METADATA_CHARACTERS,
    METADATA_KEYS,
    TENSORS,
    Repeated,
    is_shallow,
    is_unicode,
    parse_object,
    parse_plain,
    parse_strictly,
    too_many_tensors,
)

METADATA, _NOTHING = "__metadata__", "null"

_PIECE_BYTES = 1 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
# A byte may be spelled with six characters: \u0061.
_KEY_CHARACTERS = 6 * KEY_BYTES + 2
_LONG_KEY = f"a key in its header is longer than {KEY_BYTES:,} bytes"

# Every entry has it once. Texts in JSON cannot hold it: their quotes are escaped.
_IN_EVERY_ENTRY = b'"data_offsets"'
_SHORTEST_ENTRY = len('"":{"dtype":"U8","shape":[],"data_offsets":[0,0]},')

# A member of the object as every writer spells it, and the comma after it. Without a minus, an escape, and room for
# numbers that are out of range or for brackets too deep, it is what Python's parser and the library agree on.
_PLAIN = re.compile(r'"((?!__metadata__")[^"\\\x00-\x1f]{0,16384})": ?(\{[^}\\-]{0,250}\}), ?')
_FIRST_REACH = 1 << 10


class HeaderText:
    """The `length` bytes of JSON at position `start` of a file; `metadata` are complete once `entries` ends.

    Raises LoraInspectError for JSON that is no header, and for one beyond a bound.
    """

    def __init__(self, source: InputFile, start: int, length: int) -> None:
        self.metadata: dict[str, str] = {}
        self._source = source
        self._next, self._stop = start, start + length
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text, self._at = "", 0

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (name, fields) of each tensor, in the order of the text."""
        if self._stop - self._next > TENSORS * _SHORTEST_ENTRY:
            self._refuse_too_many()
        if self._peek() != "{":
            raise self._refused("is not a JSON object, so it is not a safetensors file; fetch it again")
        self._at += 1
        more, has_metadata = self._peek() != "}", False
        while more:
            plain = _PLAIN.match(self._text, self._at)
            if plain and (entry := parse_object(plain[2])):
                self._at = plain.end()
                yield plain[1], entry
                continue
            name = self._key()
            if name != METADATA:
                yield name, self._entry(name)
            elif has_metadata:
                raise self.repeats(METADATA)
            else:
                self.metadata, has_metadata = self._strings(), True
            more = self._take(",")
        if not self._take("}") or self._peek():
            raise self._no_json()

    def _refuse_too_many(self) -> None:
        """Raise LoraInspectError for too many entries, which are counted without reading them."""
        count, overlap = 0, len(_IN_EVERY_ENTRY) - 1
        for position in range(self._next, self._stop, _PIECE_BYTES):
            stop = min(position + _PIECE_BYTES + overlap, self._stop)
            count += self._source.read(position, stop - position).count(_IN_EVERY_ENTRY)
        if count > TENSORS:
            raise too_many_tensors(self._source.path, count)

    def _entry(self, name: str) -> dict[str, Any]:
        """Return an entry that may have anything in it."""
        if self._peek() != "{":
            raise incomplete_entry(self._source.path, name)
        self._ahead(ENTRY_CHARACTERS)
        for reach in (_FIRST_REACH, ENTRY_CHARACTERS):
            piece = self._text[self._at : self._at + reach]
            try:
                entry, stop = parse_strictly(piece)
            except Repeated as repeated:
                raise self.repeats(f"{repeated} in the entry of {name}") from None
            except (ValueError, RecursionError):
                continue
            if not is_shallow(entry):
                break
            if "\\u" in piece and not is_unicode(json.dumps(entry, ensure_ascii=False)):
                raise self._no_unicode()
            if _IN_EVERY_ENTRY.decode() not in piece:
                raise incomplete_entry(self._source.path, name)
            self._at += stop
            return dict(entry)
        raise self._refused(
            f"is not JSON at {name}, or longer than {ENTRY_CHARACTERS:,} characters there; fetch the file again"
        )

    def _strings(self) -> dict[str, str]:
        """Return the metadata: a map of strings to strings, or null."""
        found: dict[str, str] = {}
        room = METADATA_CHARACTERS
        if self._peek() != "{":
            self._ahead(len(_NOTHING))
            if not self._text.startswith(_NOTHING, self._at):
                raise self._no_map()
            self._at += len(_NOTHING)
            return found
        self._at += 1
        more = self._peek() != "}"
        while more:
            key = self._key()
            if key in found:
                raise self.repeats(f"{key} in {METADATA}")
            if self._peek() != '"':
                raise self._no_map()
            found[key] = self._string(room, f"{METADATA} has more than {METADATA_CHARACTERS:,} characters")
            room -= len(key) + len(found[key])
            if len(found) > METADATA_KEYS:
                raise self._beyond(f"{METADATA} has more than {METADATA_KEYS:,} entries")
            more = self._take(",")
        if not self._take("}"):
            raise self._no_json()
        return found

    def _key(self) -> str:
        """Read a name and the colon after it."""
        name = self._string(_KEY_CHARACTERS, _LONG_KEY)
        if 4 * len(name) > KEY_BYTES and len(name.encode()) > KEY_BYTES:
            raise self._beyond(_LONG_KEY)
        if not self._take(":"):
            raise self._no_json()
        return name

    def _string(self, longest: int, beyond: str) -> str:
        """Read a string spelled with up to `longest` characters; `beyond` describes a longer one in the error."""
        if self._peek() != '"':
            raise self._no_json()
        self._ahead(_KEY_CHARACTERS)
        while True:
            at_hand = len(self._text) - self._at
            try:
                value, stop = parse_plain(self._text, self._at)
            except json.JSONDecodeError as error:
                # An escape that is cut is no unterminated string to Python but a wrong escape.
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - len(r"\u0061")
                if self._next == self._stop or not is_cut:
                    raise self._no_json() from None
                if at_hand > longest:
                    raise self._beyond(beyond) from None
                self._ahead(min(2 * at_hand, longest + 1))
            else:
                break
        if stop - self._at > longest:
            raise self._beyond(beyond)
        self._at = stop
        if not value.isascii() and not is_unicode(value):
            raise self._no_unicode()
        return str(value)

    def _take(self, sign: str) -> bool:
        """Return True and step over the next character if it is this one."""
        taken = self._peek() == sign
        self._at += taken
        return taken

    def _peek(self) -> str:
        """Return the next character that is not blank, "" at the end."""
        while True:
            character = self._text[self._at : self._at + 1]
            if character > " ":
                return character
            blanks = _BLANKS.match(self._text, self._at)
            self._at = blanks.end() if blanks else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._next == self._stop:
                return ""
            self._ahead(1)

    def _ahead(self, count: int) -> None:
        """Read ahead until `count` more characters are available, or all that there are."""
        while len(self._text) - self._at < count and self._next < self._stop:
            size = min(max(count, _PIECE_BYTES), self._stop - self._next)
            piece = self._source.read(self._next, size)
            self._next += size
            try:
                text = self._decode(piece, self._next == self._stop)
            except UnicodeDecodeError:
                raise self._no_json() from None
            self._text = self._text[self._at :] + text
            self._at = 0

    def _no_json(self) -> LoraInspectError:
        return self._refused("is not JSON, so it is not a safetensors file; fetch it again")

    def _no_unicode(self) -> LoraInspectError:
        return self._refused("holds text that is not Unicode; write the file again")

    def repeats(self, what: str) -> LoraInspectError:
        """Return the error for a name that the text has twice in one place."""
        return self._refused(f"has {what} twice, and programs read different ones; write the file again")

    def _beyond(self, what: str) -> LoraInspectError:
        return DamagedError(self._source.path, what, "write the file again with less of it")

    def _no_map(self) -> LoraInspectError:
        return DamagedError(
            self._source.path, f"its {METADATA} is not a map of strings to strings", "write the file again"
        )

    def _refused(self, why: str) -> LoraInspectError:
        return DamagedError(self._source.path, f"its header {why}")


def incomplete_entry(file: str, name: str) -> LoraInspectError:
    """Return the error for a tensor with an incomplete header entry."""
    return DamagedError(file, f"the header entry of {name} lacks dtype, shape or data_offsets", "fetch the file again")
