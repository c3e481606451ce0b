"""Multipliers from a TOML file: a table for each adapter, with tables of its components, blocks and globs.

    ["style.safetensors"]
    multiplier = 0.8

    ["style.safetensors".blocks]
    double_blocks.0-9 = 0.5

Errors name the line. A table's name is the adapter's path as given, the last part of that, or this without its ending.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_inspect.errors import DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import Identity, read_whole
from lora_inspect.files.strict_json import json_number
from lora_inspect.near_names import nearest_name
from lora_inspect.reading.model.settings import Settings, is_pattern, spell_settings
from lora_inspect.reading.module_patterns import check_pattern, is_glob
from lora_inspect.sentences import listed

# A table of every block of many adapters is a tenth of that.
_LONGEST = 1 << 16
_MULTIPLIER = "multiplier"
_COMPONENTS, _BLOCKS, _GLOBS = _PARTS = ("components", "blocks", "globs")
_LEAVE_ONE = "leave one of them out"
# More parts than a name has; what parses TOML takes their square, and more, of time.
_MOST_PARTS = 64
_NAME = r"""(?:(?<![A-Za-z0-9_-])[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*"""
_LONG_NAME = re.compile(rf"(?:{_NAME}\.[ \t]*){{{_MOST_PARTS}}}")
# How many lines are left out to find an end that is the end of a value too.
_TRIES = 20


class _Text(NamedTuple):
    """The text of a file, for the line numbers in errors."""

    path: str
    text: str

    def wrong(self, keys: Sequence[str], says: str) -> LoraInspectError:
        """Return the error for the value at the `keys`."""
        return RefusedError(self.path, f"line {_line_of(self.text, keys)}: {says}")


class WeightsFile(NamedTuple):
    """The content of a file: multipliers by the name of their table."""

    source: _Text
    identity: Identity
    tables: Mapping[str, Settings]

    @property
    def path(self) -> str:
        """The path of the file."""
        return self.source.path

    def joined(self, adapters: Sequence[tuple[str, Settings]]) -> list[tuple[str, Settings]]:
        """Return the adapters with the settings on their paths and, after these, the file's.

        Raises LoraInspectError if a table names none of them or several, and if both state different things.
        """
        taken = {name: [path for path, _ in adapters if name in _names_of(path)] for name in self.tables}
        for name, paths in taken.items():
            if not paths:
                known = [os.path.basename(path) for path, _ in adapters]
                near = nearest_name(name, known)
                hint = f"try {near}" if near else f"choose from {listed(known)}"
                raise self.source.wrong((name,), f"[{_quoted(name)}] names none of the adapters; {hint}")
            if len(paths) > 1:
                raise self.source.wrong(
                    (name,), f"[{_quoted(name)}] names {listed(paths)}; write the path of one of them"
                )
        joined = []
        for path, own in adapters:
            names = [name for name, paths in taken.items() if path in paths]
            if len(names) > 1:
                raise self.source.wrong((names[1],), f"[{_quoted(names[1])}] names {path}, which already has a table")
            joined.append((path, self._with(path, own, names[0]) if names else own))
        return joined

    def _with(self, path: str, own: Settings, name: str) -> Settings:
        said = self.tables[name]
        if None not in (own.multiplier, said.multiplier) and own.multiplier != said.multiplier:
            told = spell_settings(Settings(multiplier=own.multiplier))
            raise self.source.wrong((name, _MULTIPLIER), f"the path of {path} says {told} instead; {_LEAVE_ONE}")
        numbers = dict(own.part_multipliers)
        for pattern, number in said.part_multipliers:
            if numbers.setdefault(pattern, number) != number:
                told = spell_settings(Settings(part_multipliers=((pattern, numbers[pattern]),)))
                raise self.source.wrong((name,), f"the path of {path} says {told} instead; {_LEAVE_ONE}")
        multiplier = said.multiplier if own.multiplier is None else own.multiplier
        return own._replace(multiplier=multiplier, part_multipliers=tuple(numbers.items()))


def read_weights(path: str) -> WeightsFile:
    """Read a file of multipliers by adapter.

    Raises LoraInspectError, with the line, for invalid TOML, invalid numbers and keys that are no part of an adapter.
    """
    data, identity = read_whole(path, _LONGEST, way_out="name a file of multipliers")
    try:
        text = bytes(data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DamagedError(path, f"line {line} is not UTF-8", "convert it to UTF-8") from None
    if long := _LONG_NAME.search(text):
        line = text.count("\n", 0, long.start()) + 1
        raise RefusedError(
            path, f"line {line} holds a name of more than {_MOST_PARTS} parts", "name a layer or a block"
        )
    try:
        found = _parsed(text)
    except ValueError as error:
        raise DamagedError(path, f"it is not valid TOML: {_in_a_line(error, text)}") from None
    source = _Text(path, text)
    return WeightsFile(source, identity, {name: _table(source, name, value) for name, value in found.items()})


def _table(source: _Text, name: str, value: Any) -> Settings:
    """Return the settings in the table of one adapter."""
    if not isinstance(value, dict):
        says = f'{_quoted(name)} is not in the table of an adapter; write ["ADAPTER"] on a line before it'
        raise source.wrong((name,), says)
    multiplier: float | None = None
    multipliers: dict[str, float] = {}
    for key, inner in value.items():
        keys = (name, key)
        if key == _MULTIPLIER:
            multiplier = _number(source, keys, inner)
        elif key not in _PARTS:
            if isinstance(inner, dict) and any(part in inner for part in (*_PARTS, _MULTIPLIER)):
                raise source.wrong(keys, f'a name with a point needs quotes; write ["{name}.{key}"]')
            raise source.wrong(keys, f"{_quoted(key)} is not one of {listed([_MULTIPLIER, *_PARTS])}")
        elif not isinstance(inner, dict):
            raise source.wrong(keys, f"{key} must be a table; write [{_quoted(name)}.{key}] and its numbers below it")
        else:
            for parts, number in _leaves(inner):
                own = (*keys, *parts)
                pattern = ".".join(parts)
                _check_part(source, own, key, pattern)
                if pattern in multipliers:
                    raise source.wrong(own, f"{_quoted(pattern)} appears twice; {_LEAVE_ONE}")
                multipliers[pattern] = _number(source, own, number)
    return Settings(multiplier=multiplier, part_multipliers=tuple(multipliers.items()))


def _leaves(table: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the values with their names, which TOML splits at points outside quotes."""
    left: list[tuple[tuple[str, ...], Any]] = [((), table)]
    while left:
        parts, value = left.pop()
        if isinstance(value, dict):
            left += [((*parts, key), inner) for key, inner in reversed(value.items())]
        else:
            yield parts, value


def _check_part(source: _Text, keys: Sequence[str], table: str, pattern: str) -> None:
    if not is_pattern(pattern):
        raise source.wrong(keys, f"{_quoted(pattern)} is not a module name")
    if table == _COMPONENTS and (is_glob(pattern) or "." in pattern):
        raise source.wrong(keys, f"{_quoted(pattern)} is not a component; write it below {_BLOCKS} or {_GLOBS}")
    if table == _BLOCKS and is_glob(pattern):
        raise source.wrong(keys, f"{_quoted(pattern)} is a glob; write it below {_GLOBS}")
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise source.wrong(keys, str(error)) from None


def _number(source: _Text, keys: Sequence[str], value: Any) -> float:
    found = json_number(value)
    if found is None:
        raise source.wrong(keys, f"the value of {_quoted(keys[-1])} is not a number")
    return found


def _names_of(path: str) -> tuple[str, ...]:
    name = os.path.basename(os.path.abspath(path))
    return path, name, os.path.splitext(name)[0]


def _parsed(text: str) -> dict[str, Any]:
    """Return the parsed document. Raises ValueError for invalid TOML."""
    if sys.version_info >= (3, 11):
        from tomllib import loads
    else:
        from tomli import loads
    try:
        found: dict[str, Any] = loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return found


def _line_of(text: str, keys: Sequence[str]) -> int:
    """Return the line of the value at the `keys`: the end of the shortest beginning of the text that has it."""
    lines = [f"{line}\n" for line in text.split("\n")]
    without, within = 0, len(lines)
    while within - without > 1:
        middle = (without + within) // 2
        if _has(lines, middle, without, keys):
            within = middle
        else:
            without = middle
    return within


def _has(lines: Sequence[str], stop: int, least: int, keys: Sequence[str]) -> bool:
    """Return True if the lines before `stop` have a value; last lines that end within another value are left out."""
    for end in range(stop, max(least, stop - _TRIES), -1):
        try:
            found: Any = _parsed("".join(lines[:end]))
        except ValueError:
            continue
        for key in keys:
            if not isinstance(found, dict) or key not in found:
                return False
            found = found[key]
        return True
    return False


def _in_a_line(error: ValueError, text: str) -> str:
    """Return a parser's message in one line, with the last line's number instead of "end of document"."""
    said = " ".join(str(error).split()).rstrip(".")
    return said.replace("at end of document", f"at line {text.rstrip().count(chr(10)) + 1}, the last one")


def _quoted(name: str) -> str:
    return f'"{name}"'
