"""Named tuples like those of `typing`, with classes that load in a tenth of the time.

`typing.NamedTuple` compiles a function for each class, and each run of the program makes many classes. Here a class
gets such a function only after so many calls that it pays. Measured on `info --json`: 12 ms of processor time.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

# So many calls without all values a class takes without a function of its own, which takes as long to compile; one
# with names is as slow as several others.
_FEW, _WITH_NAMES = 400, 4

# From Python 3.14 on the annotations of a class are no dictionary.
if TYPE_CHECKING or sys.version_info >= (3, 14):
    from typing import NamedTuple
else:
    from collections import _tuplegetter, namedtuple

    class _Record(tuple):
        """The base of all named tuples."""

        __slots__ = ()
        _fields: tuple[str, ...]
        _field_defaults: dict[str, Any]
        _defaults: tuple[Any, ...]  # of the last fields
        _calls: int  # those without all values

        def __new__(cls, *values: Any, **named: Any) -> "_Record":
            missing = len(cls._fields) - len(values)
            if named or missing:
                cls._calls += _WITH_NAMES if named else 1
                if cls._calls > _FEW:
                    cls.__new__ = staticmethod(_compiled(cls))
                if named or not 0 < missing <= len(cls._defaults):
                    values = _bound(cls, values, named)
                else:
                    values += cls._defaults[-missing:]
            return tuple.__new__(cls, values)

        @classmethod
        def _make(cls, values: Any) -> "_Record":
            """Return a record of the values in their order."""
            made = tuple.__new__(cls, values)
            if len(made) != len(cls._fields):
                raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
            return made

        def _replace(self, **named: Any) -> "_Record":
            """Return the record with other values of some fields."""
            values = tuple(map(named.pop, self._fields, self))
            if named:
                raise ValueError(f"Got unexpected field names: {list(named)!r}")
            return tuple.__new__(type(self), values)

        __replace__ = _replace

        def _asdict(self) -> dict[str, Any]:
            """Return the values by their names."""
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self) -> str:
            inside = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({inside})"

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)

    def _bound(cls: type[_Record], values: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """Return all values in the order of the fields; raise TypeError as a call of a function does."""
        fields = cls._fields
        found = dict(zip(fields, values))  # noqa: B905 (too many are an error of their own)
        if len(values) > len(fields) or not found.keys().isdisjoint(named) or not named.keys() <= set(fields):
            _compiled(cls)(cls, *values, **named)
        found = {**cls._field_defaults, **found, **named}
        if len(found) != len(fields):
            _compiled(cls)(cls, *values, **named)
        return [found[name] for name in fields]

    def _compiled(cls: type[_Record]) -> Any:
        """Return the function that makes a record of its arguments, as fast as any."""
        return namedtuple(cls.__name__, cls._fields, defaults=cls._field_defaults.values()).__new__

    class _Maker(type):
        """A maker of a class with fields from the annotations in its body."""

        def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(mcs, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body[field] for field in fields if field in body}
            if fields[len(fields) - len(defaults) :] != tuple(defaults):
                raise TypeError(f"{name}: a field without a default stands behind one with a default")
            for place, field in enumerate(fields):
                body[field] = _tuplegetter(place, None)
            body["__slots__"] = ()
            body["__match_args__"] = body["_fields"] = fields
            body["_field_defaults"] = defaults
            body["_defaults"] = tuple(defaults.values())
            body["_calls"] = 0
            return type(name, (_Record,), body)

    class NamedTuple(metaclass=_Maker):
        """The base of a record, as `typing.NamedTuple`."""


_Made = TypeVar("_Made", bound=tuple[Any, ...])


def make_record(record: type[_Made], row: tuple[Any, ...]) -> _Made:
    """Make one record of a row that holds all values in the order of the fields, in a third of the time of a call."""
    return tuple.__new__(record, row)


def make_records(record: type[_Made], rows: Iterable[tuple[Any, ...]]) -> Iterator[_Made]:
    """Make records of rows that hold all values in the order of the fields; fast for many rows."""
    return map(partial(tuple.__new__, record), rows)


__all__ = ["NamedTuple", "make_record", "make_records"]
