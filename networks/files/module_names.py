"""What a network calls its modules, as its files do."""

from lora_inspect.schemes.kohya import KOHYA


def module_name(prefix: str, path: str) -> str:
    """The name in keys of the layer at the dotted `path`."""
    return KOHYA.module(path, f"{prefix}_")
