"""Signals that wait for the end of code which does not expect them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lora_inspect.files.system import ENDING_SIGNALS

_HELD = (signal.SIGINT, *ENDING_SIGNALS)


@contextmanager
def held_signals() -> Iterator[None]:
    """Has the signals that end a process come when the block is done.

    A library that is interrupted while it is loaded takes it for an error of its own, or for none.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal comes to any other
        yield
        return
    came: list[int] = []
    # One that is ignored stays so, and one that was not set from Python cannot be set back.
    handlers = {
        number: handler for number in _HELD if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for arrived in came:
        signal.raise_signal(arrived)
