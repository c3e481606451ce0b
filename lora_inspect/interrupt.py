"""The answers to the signals that end a command: exceptions while outputs may be half-written, else the end.

Python drops an exception that is raised in a destructor, in the callback of a weak reference, of the garbage collector
or of a C library, and a library may swallow one. So each handler records its signal: no output appears after a recorded
signal, and a dropped exception is raised again.

This module imports nothing that takes time, because the process answers before it has loaded anything else.
"""

import _thread
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import NoReturn

INTERRUPTED = 130
WORDS = "interrupted; nothing half-written is left."
# Added to the number of a signal in the status of a command that it ends.
_KILLED_BY = 128
# Seconds until a dropped exception is raised again: the code that dropped it has ended by then.
_PAUSE = 0.01


class SignalRecord:
    """The signals that have come since the command began; a context manager around the command.

    The block replaces Python's own handler of Ctrl-C, which records nothing. `sys.unraisablehook` takes an exception
    that Python drops: it prints no traceback, and has `wake` signal the main thread, by its identifier and the number
    of the signal, so that the exception is raised again.
    """

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._is_dropped = False
        self._wake: Callable[[int, int], None] | None = None
        self._thread = 0
        self._report = sys.unraisablehook

    def command(self, wake: "Callable[[int, int], None]") -> "SignalRecord":
        """Return the context manager for a command that runs in this thread, the main one."""
        self._wake, self._thread = wake, _thread.get_ident()
        return self

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.unwind)
        self._report = sys.unraisablehook
        sys.unraisablehook = self._take_unraisable

    def __exit__(
        self, kind: "type[BaseException] | None", error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        if signal.getsignal(signal.SIGINT) == self.unwind:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = self._report
        self._numbers.clear()
        self._is_dropped = False

    def unwind(self, number: int, frame: "FrameType | None") -> None:
        """Record a signal, and raise the exception that unwinds the command."""
        self._numbers.append(number)
        while frame:
            if frame.f_code is _HOOK:  # an exception of the hook would be printed
                self._raise_later()
                return
            frame = frame.f_back
        raise _exception_of(number)

    def raise_again(self) -> None:
        """Raise the exception of the first signal, if any has come."""
        self._is_dropped = False
        if self._numbers:
            raise _exception_of(self._numbers[0]) from None

    def _take_unraisable(self, dropped: "sys.UnraisableHookArgs") -> None:
        """Report an exception that Python drops, unless a signal has come."""
        if not self._numbers:
            self._report(dropped)
        elif issubclass(dropped.exc_type, (KeyboardInterrupt, SystemExit)):
            self._raise_later()

    def _raise_later(self) -> None:
        self._is_dropped = True
        try:  # noqa: SIM105 (contextlib would take longer to load than all of this)
            _thread.start_new_thread(self._send_again, ())
        except RuntimeError:
            pass  # no thread can start, and `raise_again` is called before an output appears

    def _send_again(self) -> None:
        time.sleep(_PAUSE)
        if self._is_dropped and self._wake:
            self._is_dropped = False
            self._wake(self._thread, self._numbers[0])


_HOOK = SignalRecord._take_unraisable.__code__
# The record of this process, which has one set of handlers.
RECORD = SignalRecord()


def _exception_of(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(_KILLED_BY + number)


class Interrupt:
    """A signal handler for Ctrl-C: it unwinds, or ends the process at once.

    It unwinds by an exception while outputs may be half-written. After the command is done it ignores the signal: the
    exit status reports the outcome of the command.
    """

    def __init__(self) -> None:
        self.may_unwind = self.is_over = False

    def __call__(self, number: int, frame: "FrameType | None") -> None:
        """Handle the signal; `signal.signal` calls this."""
        if self.is_over:
            return
        if self.may_unwind:
            RECORD.unwind(number, frame)
            return
        self.end()

    def end(self) -> "NoReturn":
        """Print the sentence and end the process, without Python's own cleanup."""
        self.may_unwind = False  # one more interrupt finds nothing to unwind
        try:  # noqa: SIM105 (as above)
            os.write(2, f"Error: {WORDS}\n".encode())
        except OSError:
            pass  # nobody listens
        os._exit(INTERRUPTED)
