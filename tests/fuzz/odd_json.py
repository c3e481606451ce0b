"""JSON as no library writes it: the same field twice, numbers of 5,000 digits, tokens that are none."""

import json
from typing import Any


class Raw(str):
    """Text that stands in the JSON as it is."""

    __slots__ = ()


class Fields(list[tuple[Any, Any]]):
    """An object as (name, value) pairs, so that a field may be there twice."""


def spell(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Fields | dict):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ",".join(f"{spell(name)}:{spell(item)}" for name, item in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spell, value)) + "]"
    return json.dumps(value)
