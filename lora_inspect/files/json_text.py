"""JSON that came with a file and may be anything."""

import json
from typing import Any

from lora_inspect.files.bounds import JSON_ITEMS


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
