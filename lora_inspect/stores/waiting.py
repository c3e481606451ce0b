"""Who is told that the main thread waits for a store: the command line says so on a terminal. Standard library only."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with True while there is something to wait for, again and again, and with False once it is there.
Told = Callable[[bool], None]
_told: Told | None = None


@contextmanager
def telling(told: Told) -> Iterator[None]:
    """A block in which `told` is told."""
    global _told
    before, _told = _told, told
    try:
        yield
    finally:
        _told = before


def waits(still: bool) -> None:
    """Tells of a wait of this thread, where it is the main one: others wait beside bars of their own."""
    if _told is not None and threading.current_thread() is threading.main_thread():
        _told(still)
