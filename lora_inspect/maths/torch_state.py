"""What a program may have chosen for its own products, and what would round ours.

Devices and element types are no part of it: every tensor that is made names both.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

_lock = Lock()
# How many threads are in such a block, and whether oneDNN was in use before the first of them.
_inside, _before = 0, True


@contextmanager
def whole_products(device: str = "cpu") -> Iterator[None]:
    """A block in which products of float32 on a kind of `device` are computed of float32, in this thread and new ones.

    Autocast multiplies in half precision, as on the CPU oneDNN does where `torch.set_float32_matmul_precision` allows
    it. That is a state of the process: oneDNN rests for all of it until the block ends. Torch is not loaded for this.
    """
    if sys.modules.get("torch") is None:
        yield
        return
    import torch

    _enter(torch.backends.mkldnn)
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        _leave(torch.backends.mkldnn)


def _enter(library: Any) -> None:
    global _inside, _before
    with _lock:
        if not _inside:
            _before = library.enabled
            library.enabled = False
        _inside += 1


def _leave(library: Any) -> None:
    global _inside
    with _lock:
        _inside -= 1
        if not _inside:
            library.enabled = _before
