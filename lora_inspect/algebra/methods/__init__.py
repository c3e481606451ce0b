"""The methods that make one change of several: every file in `known`, by the names that the command line has."""

import os
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names are known without numpy
    from lora_inspect.algebra.methods.record import Method

SUM = "sum"


@cache
def known_methods() -> tuple[str, ...]:
    """Return the names of the methods, the sum first."""
    files = (os.path.splitext(name) for name in os.listdir(os.path.join(os.path.dirname(__file__), "known")))
    names = [stem.replace("_", "-") for stem, ending in files if ending == ".py" and stem != "__init__"]
    return tuple(sorted(names, key=lambda name: (name != SUM, name)))


def by_name(name: str) -> "Method":
    """Return the method of a name that is known."""
    found: Method = import_module(f"{__name__}.known.{name.replace('-', '_')}").METHOD
    return found
