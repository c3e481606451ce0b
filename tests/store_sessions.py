"""The sessions of stores: a test closes its own before it ends or forks."""

import gc

from lora_inspect.stores.client import forget_file_systems


def close_file_systems() -> None:
    """Forgets the file systems and collects them here.

    Where the garbage collector came upon a session while a future was waited for, the future waited for the loop and
    the loop for the lock of the future, until it gave up after a second.
    """
    forget_file_systems()
    gc.collect(1)
