"""Regular expressions over the dotted paths of layers, each of which has to match a whole path."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")
_Default = TypeVar("_Default")


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """The first pattern that matches `path`; None where none does."""
    return next((pattern for pattern in patterns if re.fullmatch(pattern, path)), None)


def value_at(values: Mapping[str, _Value], path: str, default: _Default) -> _Value | _Default:
    """The value of the first pattern that matches `path`; `default` where none does."""
    pattern = first_match(values, path)
    return default if pattern is None else values[pattern]


def unmatched(patterns: Iterable[str], paths: Collection[str]) -> list[str]:
    """The patterns that match none of the `paths`."""
    return [pattern for pattern in patterns if not any(re.fullmatch(pattern, path) for path in paths)]


def never_first(patterns: Collection[str], paths: Collection[str]) -> list[str]:
    """The patterns that match some of the `paths`, but none that no pattern before them matches."""
    used = {first_match(patterns, path) for path in paths}
    idle = unmatched(patterns, paths)
    return [pattern for pattern in patterns if pattern not in used and pattern not in idle]
