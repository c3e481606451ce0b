"""The answer to Ctrl-C: an exception while outputs may be half-written, else the end.

This module imports nothing that takes time, because the process answers before it has loaded anything else.
"""

import os
from types import FrameType

INTERRUPTED = 130
WORDS = "interrupted; nothing half-written is left."


class Interrupt:
    """A signal handler for Ctrl-C: it unwinds, or ends the process at once.

    It unwinds by an exception while outputs may be half-written. After the command is done it ignores the signal: the
    exit status reports the outcome of the command.
    """

    def __init__(self) -> None:
        self.may_unwind = self.is_over = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal; `signal.signal` calls this."""
        if self.is_over:
            return
        if self.may_unwind:
            raise KeyboardInterrupt
        self.end()

    def end(self) -> None:
        """Print the sentence and end the process, without Python's own cleanup."""
        self.may_unwind = False  # one more interrupt finds nothing to unwind
        try:  # noqa: SIM105 (contextlib would take longer to load than all of this)
            os.write(2, f"Error: {WORDS}\n".encode())
        except OSError:
            pass  # nobody listens
        os._exit(INTERRUPTED)
