"""JSON as strictly as the safetensors library takes it, by Python's parser. Standard library only."""

import json
from typing import Any

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
    """A number without a fraction, which is none of the whole numbers if it is -0."""
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
    """The object that a plain text is; None where it is none, or is to be looked at more closely."""
    try:
        entry: dict[str, Any] = parse_plain(text)[0]
    except ValueError:
        return None
    return entry


def is_shallow(value: Any, room: int = _DEEPEST) -> bool:
    """Whether lists and objects stand at most `room` deep in each other; by default as deep as the library follows."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is None or (room > 0 and all(is_shallow(one, room - 1) for one in inner))


def is_unicode(text: str) -> bool:
    """Whether the text holds no half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
