"""Has the disk take what is written to a file while more of it is made, so that less is left to wait for at the end."""

import threading
from contextlib import suppress

from lora_inspect.files.system import start_writing

# So much is written between two words to the disk; smaller files wait for none.
_STEP = 64 << 20


class EarlySync:
    """Tells the system of one open file, in a thread of its own: where the disk is slow, that thread alone waits.

    What the disk refuses shows when the file is synced at last.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._since = 0
        self._due = threading.Event()
        self._is_over = False
        self._thread: threading.Thread | None = None

    def wrote(self, count: int) -> None:
        """Says that so many more bytes were written; one thread calls it at a time."""
        self._since += count
        if self._since < _STEP:
            return
        self._since = 0
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            with suppress(RuntimeError):  # without one all is left for the end
                self._thread.start()
        self._due.set()

    def close(self) -> None:
        """Ends it; the file may be closed then."""
        self._is_over = True
        self._due.set()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._is_over or not start_writing(self._descriptor):
                return
