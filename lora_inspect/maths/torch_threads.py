"""Torch in a command: loaded whole or not at all, with threads that wait briefly before they sleep.

`whole_products` sets aside choices of a program that would round our products. Devices and element types are no part of
it: every tensor that is made names both.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from lora_inspect.errors import NeedsTorchError, NotFoundError
from lora_inspect.files.deferred_signals import held_signals
from lora_inspect.files.system import usable_cores
from lora_inspect.version import torch_advice

# libgomp, which torch's wheels for Linux bring, lets a thread that waits turn in a loop 300,000 times. Where another
# process holds a core, the threads of each product turn until the last of them got its share. A thousand turns are
# as fast on a quiet machine, and leave the core to the one that is waited for.
_TURNS = ("GOMP_SPINCOUNT", "1000")
# With one of these the user has chosen, for this runtime or for those of other systems.
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def load_torch() -> None:
    """Import torch; a signal that ends the process is answered after that.

    Raises LoraInspectError where torch is not installed, and where there is no working folder: torch's libraries would
    end the process.
    """
    try:
        os.getcwd()
    except OSError:
        raise NotFoundError("the working folder no longer exists; change to another one.") from None
    wait_briefly()
    try:
        with held_signals():
            import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise NeedsTorchError(f"this needs torch, but {torch_advice()}.") from error


def wait_briefly() -> None:
    """Set, in the environment, that the threads of a torch that is not loaded yet wait briefly.

    The runtime reads it once, when it is loaded: nothing is changed for a torch that is there already.
    """
    if "torch" not in sys.modules and not any(choice in os.environ for choice in _CHOICES):
        name, turns = _TURNS
        os.environ[name] = turns


def computing_threads(most: int) -> int:
    """Return the number of computing threads: the least of torch's number, the cores and `most`."""
    import torch

    return max(1, min(torch.get_num_threads(), usable_cores(), most))


def one_thread() -> None:
    """Make torch compute only in the calling thread."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def own_threads() -> Iterator[None]:
    """Let other threads call `one_thread` in the block; after it torch has its own threads again."""
    import torch

    count = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(count)


_lock = Lock()
# How many threads are in such a block, and whether oneDNN was in use before the first of them.
_inside, _before = 0, True


@contextmanager
def whole_products(device: str = "cpu") -> Iterator[None]:
    """Compute float32 products on a kind of `device` in float32 in the block, in this thread and new ones.

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
