"""A progress bar, and a line for waits on a store, on stderr if a person looks at it.

The line appears only if nothing else is drawn. Other streams get neither.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lora_inspect.cli import terminal
from lora_inspect.progress import Progress
from lora_inspect.stores.client import telling
from lora_inspect.stores.patience import noting

# How often a bar is drawn anew, in seconds, and the columns between its brackets.
_EVERY, _BAR = 0.1, 24
# What is behind a bar: (how much is done, of how much, in how many seconds).
Spelled = Callable[[int, int, float], str]


def of_all(done: int, length: int, seconds: float) -> str:
    """Return the progress of things that people count."""
    return f"{done}/{length}{_left(done, length, seconds)}"


def percent(done: int, length: int, seconds: float) -> str:
    """Return the progress of bytes that take a few seconds at most."""
    return f"{100 * done // max(length, 1)}%"


def in_bytes(done: int, length: int, seconds: float) -> str:
    """Return the progress of bytes with their speed and the remaining time."""
    speed = f"  {done / seconds / 1e6:,.0f} MB/s" if done and seconds else ""
    return f"{percent(done, length, seconds)}{speed}{_left(done, length, seconds)}"


def _left(done: int, length: int, seconds: float) -> str:
    """Return the time for the rest at the present speed, once it is known."""
    if seconds < 1 or not 0 < done < length:
        return ""
    minutes, rest = divmod(round(seconds * (length - done) / done), 60)
    hours, minutes = divmod(minutes, 60)
    return f"  {f'{hours}:{minutes:02}' if hours else minutes}:{rest:02} left"


class BarBelow:
    """A bar in the line below the printed rows; nothing if nobody watches.

    `spelled` writes the progress.
    """

    def __init__(self, label: str, length: int, spelled: Spelled) -> None:
        self._label, self._length, self._spelled = label, length, spelled
        self._done = 0
        self._is_watched = sys.stderr is not None and sys.stderr.isatty()
        self._drawn, self._began = 0, time.monotonic()
        self._last = self._began

    def begin(self) -> None:
        """Draw the bar, as the work begins now."""
        self._began = time.monotonic()
        if self._is_watched:
            self._draw()

    def advance(self, amount: int) -> None:
        """Add an amount to the progress."""
        self._done += amount
        is_due = time.monotonic() - self._last >= _EVERY or (self._drawn and amount and self._done >= self._length)
        if self._is_watched and is_due:
            self._draw()

    def above(self, write: Callable[[], None]) -> None:
        """Write whole lines in place of the bar, and draw it again below them."""
        was_drawn = self._drawn
        self.erase()
        write()
        if was_drawn:
            self._draw()

    def erase(self) -> None:
        """Remove the bar."""
        if self._drawn:
            self._write(f"\r{' ' * self._drawn}\r")
            self._drawn = 0

    def _draw(self) -> None:
        now = time.monotonic()
        filled = min(self._done * _BAR // max(self._length, 1), _BAR)
        behind = self._spelled(self._done, self._length, now - self._began)
        text = f"{self._label} [{'#' * filled}{'-' * (_BAR - filled)}] {behind}"
        text = text[: max(shutil.get_terminal_size().columns - 1, 0)]
        self._write(f"\r{text:{self._drawn}}")
        self._drawn, self._last = max(len(text), self._drawn), now

    def _write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


# The bar of the block that runs.
_bar: BarBelow | None = None


@contextmanager
def bar_below(label: str, length: int, spelled: Spelled = of_all) -> Iterator[BarBelow]:
    """Yield a bar for as long as the block runs; it is drawn once that takes a moment."""
    global _bar
    before, _bar = _bar, BarBelow(label, length, spelled)
    bar = _bar
    try:
        yield bar
    finally:
        _bar = before
        bar.erase()


@contextmanager
def progress_bar(label: str, length: int, spelled: Spelled = of_all) -> Iterator[Progress]:
    """Yield a function to call with each amount of progress.

    Its first call draws the bar, so a refusal draws none.
    """
    with bar_below(label, length, spelled) as bar:
        calls = 0

        def advance(amount: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                bar.begin()
            bar.advance(amount)

        yield advance


# From so many seconds on, and how often it is drawn anew.
_AFTER, _WAIT_EVERY = 2.0, 0.5


class _Line:
    """The line for waits, which disappears for other output.

    Bars are longer and are drawn over it.
    """

    def __init__(self) -> None:
        self._is_watched = sys.stderr is not None and sys.stderr.isatty()
        self._began = self._last = time.monotonic()
        self._drawn = 0

    def __call__(self, still: bool) -> None:
        now = time.monotonic()
        if not still:
            self._write("", now)
        elif self._is_watched and now - self._began >= _AFTER and (now - self._last >= _WAIT_EVERY or not self._drawn):
            self._write(f"Reading over the network, {now - self._began:.0f} s", now)

    def note(self, text: str) -> None:
        """Print a note in place of the line or a bar, and draw that again below."""
        self._write("", time.monotonic())
        if _bar is None:
            terminal.note(text)
        else:
            _bar.above(lambda: terminal.note(text))

    def _write(self, text: str, now: float) -> None:
        if not text and not self._drawn:
            return
        with suppress(OSError):
            sys.stderr.write(f"\r{text:{self._drawn}}" + ("" if text else "\r"))
            sys.stderr.flush()
        self._drawn, self._last = len(text), now


@contextmanager
def waiting_line() -> Iterator[None]:
    """Draw the line in the block once a command has waited a moment, and note long waits."""
    line = _Line()
    with telling(line), noting(line.note):
        yield
