"""The error for a key that a metadata has not."""

from collections.abc import Mapping

from lora_inspect.errors import LoraInspectError
from lora_inspect.escape import shortened
from lora_inspect.files.discovery import nearest_name


def missing_key(path: str, key: str, metadata: Mapping[str, str]) -> LoraInspectError:
    """The error for a key, or a glob of keys, that a metadata has not."""
    if not metadata:
        return LoraInspectError(f"{path}: it has no metadata, so no {shortened(key)}; set it first.")
    near = nearest_name(key, metadata)
    which = f" (did you mean {shortened(near)}?)" if near else ", of those that `lora-inspect metadata show` lists"
    return LoraInspectError(f"{path}: its metadata has no {shortened(key)}; name another key{which}.")
