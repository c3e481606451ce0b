"""Module names up to their numbers: every segment that is a number is written `#`, as is the `{i}` of a layout."""

import re
from collections.abc import Iterable, Iterator
from functools import cache, partial
from sys import intern

from lora_inspect.caching import remembering_names

# A whole segment that is a number, in dotted and in underscored names. Its first letter stands before all else, as
# letters of few kinds are searched for much faster than places.
INDEX = {
    ".": re.compile(r"[0-9{](?<![^.\n][0-9{])(?:(?<=\{)i\}|(?<!\{)[0-9]*)(?![^.\n])"),
    "_": re.compile(r"[0-9{](?<![^_\n][0-9{])(?:(?<=\{)i\}|(?<!\{)[0-9]*)(?![^_\n])"),
}


_DIGITS = "0123456789"


def separator_of(path: str) -> str:
    """Return a dot, or an underscore for a name without a dot."""
    return "." if "." in path else "_"


def pattern_of(path: str, separator: str) -> str:
    """Return the name with `separator` between its segments and `#` for its numbers."""
    return _PATTERNS[separator](path)


def _find_pattern(separator: str, path: str) -> str:
    # Paths have few patterns: one object for each takes less memory, and stays in the processor's cache.
    return intern(INDEX[separator].sub("#", path.replace(".", separator)))


_PATTERNS = {separator: remembering_names(partial(_find_pattern, separator)) for separator in INDEX}


def patterns_of(paths: Iterable[str], separator: str) -> frozenset[str]:
    """Return the patterns of all `paths`; joined, they take one substitution."""
    return frozenset(pattern_of("\n".join(paths), separator).split("\n"))


def fill(template: str, other: str, path: str) -> str | None:
    """Return `other` with the indices that `template` has in `path`, or None if `path` does not match it.

    Both are paths of layouts with as many `{i}`: `fill("a.{i}.to_out.0", "b.{i}.o", "a.3.to_out.0")` is "b.3.o".
    """
    indices = _indices(template, path)
    return None if indices is None else other.replace("{i}", "{}").format(*indices)


def counterparts(pairs: Iterable[tuple[str, str]], path: str) -> Iterator[str]:
    """Yield the names of the module at `path` in the other of the two layouts that `pairs` are paths in."""
    for first, second in pairs:
        for template, other in ((first, second), (second, first)):
            if found := fill(template, other, path):
                yield found


@cache
def layout_patterns(paths: tuple[str, ...], separator: str) -> frozenset[str]:
    """Return the patterns of the paths of a layout, cached."""
    return patterns_of(paths, separator)


def _indices(template: str, path: str) -> list[str] | None:
    """Return the text of each `{i}` of a path, or None if the path does not match the template.

    No layout has a digit after an `{i}`.
    """
    first, *others = template.split("{i}")
    if not path.startswith(first):
        return None
    rest, found = path[len(first) :], []
    for fixed in others:
        behind = rest.lstrip(_DIGITS)
        if behind == rest or not behind.startswith(fixed):
            return None
        found.append(rest[: len(rest) - len(behind)])
        rest = behind[len(fixed) :]
    return None if rest else found
