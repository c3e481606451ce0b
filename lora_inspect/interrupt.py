"""The answer to Ctrl-C: an exception while outputs may be half-written, the end of the process while none can be.

Imports nothing that takes time: the process answers before it has loaded anything else.
"""

import os
from types import FrameType

INTERRUPTED = 130
WORDS = "interrupted; nothing half-written is left."


class Interrupt:
    """Answers Ctrl-C: by an exception while outputs may be half-written, by the end at once while none can be.

    When all is done it counts no more: the exit status says what became of the command.
    """

    def __init__(self) -> None:
        self.may_unwind = self.is_over = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """What `signal.signal` calls."""
        if self.is_over:
            return
        if self.may_unwind:
            raise KeyboardInterrupt
        self.end()

    def end(self) -> None:
        """Says so and ends the process, without what Python does at its end."""
        self.may_unwind = False  # one more interrupt finds nothing to unwind
        try:  # noqa: SIM105 (contextlib would take longer to load than all of this)
            os.write(2, f"Error: {WORDS}\n".encode())
        except OSError:
            pass  # nobody listens
        os._exit(INTERRUPTED)
