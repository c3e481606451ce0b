"""A line on stderr that says how long a store lets wait, where a person looks at it and nothing else is drawn."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lora_inspect.stores.client import telling

# From so many seconds on, and how often it is drawn anew.
_AFTER, _EVERY = 2.0, 0.5


class _Line:
    """The line, which is gone whenever something else may be printed. Bars are longer and are drawn over it."""

    def __init__(self) -> None:
        self._is_watched = sys.stderr is not None and sys.stderr.isatty()
        self._began = self._last = time.monotonic()
        self._drawn = 0

    def __call__(self, still: bool) -> None:
        now = time.monotonic()
        if not still:
            self._write("", now)
        elif self._is_watched and now - self._began >= _AFTER and (now - self._last >= _EVERY or not self._drawn):
            self._write(f"Reading from far away, {now - self._began:.0f} s", now)

    def _write(self, text: str, now: float) -> None:
        if not text and not self._drawn:
            return
        with suppress(OSError):
            sys.stderr.write(f"\r{text:{self._drawn}}" + ("" if text else "\r"))
            sys.stderr.flush()
        self._drawn, self._last = len(text), now


@contextmanager
def waiting_line() -> Iterator[None]:
    """A block in which the line is drawn once a command has taken a moment, and waits."""
    with telling(_Line()):
        yield
