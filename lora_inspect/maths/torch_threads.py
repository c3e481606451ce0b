"""Torch as a command loads it: whole or not at all, with threads that wait briefly for each other before they sleep."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.deferred_signals import held_signals
from lora_inspect.files.system import usable_cores

# libgomp, which torch's wheels for Linux bring, lets a thread that waits turn in a loop 300,000 times. Where another
# process holds a core, the threads of each product turn until the last of them got its share. A thousand turns are
# as fast on a quiet machine, and leave the core to the one that is waited for.
_TURNS = ("GOMP_SPINCOUNT", "1000")
# With one of these the user has chosen, for this runtime or for those of other systems.
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def load_torch() -> None:
    """Imports torch; a signal that ends the process is answered when that is done.

    Raises LoraInspectError where torch is not installed, and where there is no working folder: torch's libraries would
    end the process.
    """
    try:
        os.getcwd()
    except OSError:
        raise LoraInspectError("the working folder is not there any more; change to another one.") from None
    wait_briefly()
    try:
        with held_signals():
            import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise LoraInspectError(
            "this computes with tensors, and torch is not installed; install it, for instance with pip install torch."
        ) from error


def wait_briefly() -> None:
    """Sets, in the environment, that the threads of a torch which is yet to be loaded wait briefly.

    The runtime reads it once, when it is loaded: nothing is changed for a torch that is there already.
    """
    if "torch" not in sys.modules and not any(choice in os.environ for choice in _CHOICES):
        name, turns = _TURNS
        os.environ[name] = turns


def computing_threads(most: int) -> int:
    """How many threads compute at the same time: as many as torch may use and there are cores, at most `most`."""
    import torch

    return max(1, min(torch.get_num_threads(), usable_cores(), most))


def one_thread() -> None:
    """Has torch compute in the thread that calls it alone, without any of its own."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def own_threads() -> Iterator[None]:
    """A block in which other threads call `one_thread`, and behind which torch has its own threads again."""
    import torch

    count = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(count)
