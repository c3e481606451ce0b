"""JSON as strictly as the safetensors library takes it, by Python's parser. Standard library only.

JSON of a file may be anything, its numbers too. The bounds limit how much of a file is read; a sentence with the number
refuses more. Each bound is far above the numbers of real models, and low enough that a hostile file costs little before
it is refused.
"""

import json
import math
from typing import Any

from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.files.safetensors.dtypes import SIZES

# The library takes what is near the end of a double's range for infinite.
_LARGEST_NUMBER = 1.7e308
_DEEPEST = 126


class Repeated(ValueError):
    """An object with a name that it has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise Repeated(next(name for name in names if names.count(name) > 1))
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if not abs(number) < _LARGEST_NUMBER:
        raise ValueError(digits)
    return number


def _whole(digits: str) -> float:
    """Return a number without a fraction; -0 is not one of the integers."""
    number = -0.0 if digits == "-0" else int(digits)
    if not abs(number) < _LARGEST_NUMBER:
        raise ValueError(digits)
    return number


def _no_number(word: str) -> float:
    raise ValueError(word)  # NaN and infinities, which Python takes for JSON


# (value, position behind it) of what a text has at a position. Whole numbers that are out of range, and a whole -0, are
# for the strict one alone: without a function for whole numbers it takes half the time.
parse_plain = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number).raw_decode
parse_strictly = json.JSONDecoder(
    object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number, parse_int=_whole
).raw_decode


def parse_object(text: str) -> dict[str, Any] | None:
    """Return the object in a plain text; None if it is none, or needs a closer look."""
    try:
        entry: dict[str, Any] = parse_plain(text)[0]
    except ValueError:
        return None
    return entry


def is_shallow(value: Any, room: int = _DEEPEST) -> bool:
    """Return True if lists and objects are nested at most `room` deep; the default is the library's limit."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is None or (room > 0 and all(is_shallow(one, room - 1) for one in inner))


def is_unicode(text: str) -> bool:
    """Return True if the text has no half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# The safetensors library refuses larger headers.
HEADER_BYTES = 100_000_000
# In all shards together; the largest models have some ten thousand.
TENSORS = 1_000_000
# A name of a tensor or of a metadata entry, in UTF-8. The longest of real models have some two hundred bytes.
KEY_BYTES = 64 << 10
# What a header says of one tensor, in characters.
ENTRY_CHARACTERS = 64 << 10
# The metadata of one file. The tags of a large dataset, and a thumbnail, take two or three million characters.
METADATA_CHARACTERS, METADATA_KEYS = 8_000_000, 100_000
# A configuration or an index beside the weights. The index of the largest models has a few million bytes.
JSON_BYTES = 64 << 20
# Lists, objects and what stands in them, in any JSON: an index has an item for each tensor.
JSON_ITEMS = TENSORS + 1_000


def too_many_tensors(file: str, count: int) -> LoraInspectError:
    """Return the error for a file or a set of files with `count` tensors."""
    return RefusedError(
        file, f"{count:,} tensors are more than the {TENSORS:,} that lora-inspect reads", "name another file"
    )


def parse_json(text: str | bytes | bytearray) -> Any:
    """Return the parsed text. Raises ValueError for invalid JSON, too deep nesting, and too many items."""
    signs = ("[", "{", ",") if isinstance(text, str) else (b"[", b"{", b",")
    # A list of nothing but empty lists takes thirty times the memory of its text.
    if len(text) > JSON_ITEMS and sum(map(text.count, signs)) > JSON_ITEMS:  # type: ignore[arg-type]
        raise ValueError(f"the JSON has more than {JSON_ITEMS:,} items")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def json_number(value: Any) -> float | None:
    """Return a finite number in JSON; None for anything else, and for an integer beyond every float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def json_count(value: Any) -> int | None:
    """Return a whole number above 0 that can be a size; None for anything else, such as true and false."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < SIZES else None
