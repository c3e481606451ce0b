"""The registry of codecs: every file of this folder that has a record `CODEC`."""

import os
from importlib import import_module

from lora_inspect.codecs.record import FORMAT, Codec

CODECS: dict[str, Codec] = {}


def add(codec: Codec) -> None:
    """Register a codec for all readers of bases. Raises ValueError for a name that is taken."""
    if codec.name in CODECS:
        raise ValueError(f"there is a codec called {codec.name} already")
    CODECS[codec.name] = codec


def storing(dtype: str) -> list[Codec]:
    """Return the codecs for codes of an element type."""
    return [codec for codec in CODECS.values() if dtype in codec.stored]


def stored_types() -> frozenset[str]:
    """Return the element types of the codes of all codecs."""
    return frozenset(dtype for codec in CODECS.values() for dtype in codec.stored)


def setting_names() -> tuple[str, ...]:
    """Return the names, in a weight's module, of the tensors and JSON that say how its codes are read."""
    return (*dict.fromkeys(name for codec in CODECS.values() for name in codec.names), FORMAT)


for _file in sorted(os.listdir(os.path.dirname(__file__))):
    _name, _ending = os.path.splitext(_file)
    if _ending == ".py" and _name != "__init__":
        _codec = getattr(import_module(f"{__name__}.{_name}"), "CODEC", None)
        if _codec is not None:
            add(_codec)
