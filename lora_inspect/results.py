"""The base of all results of functions, with a short line of their content."""

from collections.abc import Collection
from typing import Any

from lora_inspect.sentences import shortened

# The columns of the line, and those of a value in it.
_COLUMNS, _VALUE = 300, 60


class Result:
    """The base of a frozen dataclass, whose `repr` has at most 300 characters however much it holds."""

    __slots__ = ()

    def __repr__(self) -> str:
        said = [f"{name}={brief(getattr(self, name))}" for name in self.__dataclass_fields__]  # type: ignore[attr-defined]
        return bounded(type(self).__name__, said)


def bounded(name: str, said: list[str]) -> str:
    """Join the facts in the order of their fields, as many as a line holds."""
    shown = f"{name}({', '.join(said)})"
    while len(shown) > _COLUMNS:
        said = said[:-1]
        shown = f"{name}({', '.join(said)}, ...)"
    return shown


def brief(value: Any) -> str:
    """Write a value in a few words; the count of a long or large collection."""
    if isinstance(value, str):
        return repr(shortened(value, 100)[:_VALUE]) if len(value) > _VALUE else repr(value)
    if isinstance(value, Collection):
        if not value:
            return "[]"
        is_plain = len(value) <= 2 and all(isinstance(one, (str, int, float)) for one in value)
        shown = repr(value) if is_plain else ""
        return shown if shown and len(shown) <= _VALUE else f"<{len(value):,}>"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"<{type(value).__name__}>"
