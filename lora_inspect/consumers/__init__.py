"""The registry of programs that load adapters: every file of this folder with a record `CONSUMER`, or `CONSUMERS`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from lora_inspect.consumers.record import Consumer

CONSUMERS: dict[str, Consumer] = {}


def add(consumer: Consumer) -> None:
    """Makes a program known to `compat`, `convert --to` and `info`; raises ValueError for a name that is taken."""
    if consumer.name in CONSUMERS:
        raise ValueError(f"there is a program called {consumer.name} already")
    CONSUMERS[consumer.name] = consumer


@contextmanager
def added(consumer: Consumer) -> Iterator[None]:
    """Has a program known for as long as the block runs."""
    add(consumer)
    try:
        yield
    finally:
        del CONSUMERS[consumer.name]


def by_name(name: str) -> Consumer:
    """The program called `name`; raises KeyError."""
    return CONSUMERS[name]


for _file in sorted(os.listdir(os.path.dirname(__file__))):
    _name, _ending = os.path.splitext(_file)
    if _ending == ".py" and _name != "__init__":
        _module = import_module(f"{__name__}.{_name}")
        for _consumer in getattr(_module, "CONSUMERS", None) or filter(None, [getattr(_module, "CONSUMER", None)]):
            add(_consumer)
