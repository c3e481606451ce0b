"""Signals that come while something is under way that an exception in between would break."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lora_inspect.files.system import ENDING_SIGNALS
from lora_inspect.interrupt import RECORD, Interrupt


@contextmanager
def held_signals() -> Iterator[None]:
    """Delay the signals that end the process while the block loads a library and writes nothing.

    A library that is interrupted while it loads may report an error of its own, or ignore the interrupt. A command-line
    process need not wait: Ctrl-C ends it at once.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    own = interrupt if isinstance(interrupt, Interrupt) else None
    with _held(ENDING_SIGNALS if own else (signal.SIGINT, *ENDING_SIGNALS)):
        is_main = threading.current_thread() is threading.main_thread()
        if own and is_main:
            own.may_unwind = False
        try:
            yield
        finally:
            if own and is_main:
                own.may_unwind = True


@contextmanager
def noted_signals() -> Iterator[Callable[[], bool]]:
    """Delay the signals that end the process, with Ctrl-C, until the block is done.

    Yields a function that returns True once one has come.
    """
    with _held((signal.SIGINT, *ENDING_SIGNALS)) as came:
        yield lambda: bool(came)


@contextmanager
def committing() -> Iterator[None]:
    """Delay signals while the block gives a complete output its name.

    Raises the exception of a signal that came before, which Python or a library may have dropped.
    """
    with noted_signals():
        RECORD.raise_again()
        yield


@contextmanager
def _held(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Delay signals until the block is done; yields the list that they are added to."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # no signal comes to any other
        yield came
        return
    # One that is ignored stays so, and one that was not set from Python cannot be set back.
    handlers = {
        number: handler for number in numbers if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for arrived in came:
        signal.raise_signal(arrived)
