"""JSON that came with a file and may be anything, its numbers too."""

import json
import math
from typing import Any

from lora_inspect.files.bounds import JSON_ITEMS
from lora_inspect.files.safetensors.dtypes import SIZES


def parse_json(text: str | bytes | bytearray) -> Any:
    """The parsed text; ValueError where it is no JSON, nested deeper than Python follows, or of too many items."""
    signs = ("[", "{", ",") if isinstance(text, str) else (b"[", b"{", b",")
    # A list of nothing but empty lists takes thirty times the memory of its text.
    if len(text) > JSON_ITEMS and sum(map(text.count, signs)) > JSON_ITEMS:  # type: ignore[arg-type]
        raise ValueError(f"the JSON has more than {JSON_ITEMS:,} items")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def json_number(value: Any) -> float | None:
    """A finite number as JSON has it; None for anything else, and for a whole one beyond every float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def json_count(value: Any) -> int | None:
    """A whole number above 0 that a size may be; None for anything else. Yes and no are none, though Python counts."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < SIZES else None
