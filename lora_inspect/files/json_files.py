"""The JSON files next to a checkpoint: configurations, and the index of a set of shards. Standard library only."""

from typing import Any

from lora_inspect.errors import DamagedError
from lora_inspect.files.file_types import START_BYTES, refuse_format
from lora_inspect.files.input_file import Identity, read_whole
from lora_inspect.files.strict_json import JSON_BYTES, JSON_ITEMS, parse_json


def read_json(file: str, identity: Identity | None = None) -> tuple[Any, Identity]:
    """Return the parsed content and the identity of a small JSON file next to a checkpoint.

    Raises LoraInspectError if it is not JSON, or not the file of an earlier `identity`.
    """
    content, identity = read_whole(file, JSON_BYTES, identity)
    try:
        return parse_json(content), identity
    except ValueError:
        refuse_format(file, bytes(content[:START_BYTES]))
        raise DamagedError(
            file, f"it is not valid JSON of at most {JSON_ITEMS:,} items", "fetch it again or repair it"
        ) from None


def read_index(file: str, identity: Identity | None = None) -> tuple[dict[str, Any], Identity]:
    """Return the content of an index.json with its `weight_map` of tensor names to files, and its identity."""
    content, identity = read_json(file, identity)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DamagedError(file, "it has no `weight_map` of tensor names to files", "fetch the index again")
    return content, identity
