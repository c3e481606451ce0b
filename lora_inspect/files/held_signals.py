"""Signals that come while a library is loaded, which does not expect them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lora_inspect.files.system import ENDING_SIGNALS
from lora_inspect.start import Interrupt


@contextmanager
def held_signals() -> Iterator[None]:
    """Has the signals that end the process come when the block is done, which loads a library and has written nothing.

    A library that is interrupted while it is loaded takes it for an error of its own, or for none. A process of the
    command line need not wait: Ctrl-C ends it at once.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal comes to any other
        yield
        return
    interrupt = signal.getsignal(signal.SIGINT)
    own = interrupt if isinstance(interrupt, Interrupt) else None
    held = ENDING_SIGNALS if own else (signal.SIGINT, *ENDING_SIGNALS)
    came: list[int] = []
    # One that is ignored stays so, and one that was not set from Python cannot be set back.
    handlers = {
        number: handler for number in held if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    if own:
        own.may_unwind = False
    try:
        yield
    finally:
        if own:
            own.may_unwind = True
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for arrived in came:
        signal.raise_signal(arrived)
