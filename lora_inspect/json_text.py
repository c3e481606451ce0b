"""JSON that came with a file and may be anything."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The parsed text; ValueError where it is no JSON or nested deeper than Python follows."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
