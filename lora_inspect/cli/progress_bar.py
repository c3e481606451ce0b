"""A progress bar on stderr, where a person looks at it; nothing anywhere else."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import click

from lora_inspect.progress import Progress, silent


@contextmanager
def progress_bar(label: str, length: int) -> Iterator[Progress]:
    """Yields what to call with each amount that is done; the first call draws the bar, a refusal draws none."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    bar = click.progressbar(length=length, label=label, file=sys.stderr, show_eta=True)
    with ExitStack() as drawn:

        def advance(amount: int) -> None:
            if not bar.entered:
                drawn.enter_context(bar)
            bar.update(amount)

        yield advance


# How often a bar is drawn anew, in seconds, and the columns between its brackets.
_EVERY, _BAR = 0.1, 24


def of_all(done: int, length: int) -> str:
    """What stands behind a bar of things that people count."""
    return f"{done}/{length}"


def percent(done: int, length: int) -> str:
    """What stands behind a bar of bytes."""
    return f"{100 * done // max(length, 1)}%"


class BarBelow:
    """A bar in the line below what is printed meanwhile, nothing where nobody looks; `spelled` says how far it is."""

    def __init__(self, label: str, length: int, spelled: Callable[[int, int], str]) -> None:
        self._label, self._length, self._spelled = label, length, spelled
        self._done = 0
        self._is_watched = sys.stderr is not None and sys.stderr.isatty()
        self._drawn, self._last = 0, time.monotonic()

    def advance(self, amount: int) -> None:
        """Says that so much more is done."""
        self._done += amount
        if self._is_watched and time.monotonic() - self._last >= _EVERY:
            self._draw()

    def above(self, write: Callable[[], None]) -> None:
        """Has whole lines written where the bar is, which then stands below them."""
        was_drawn = self._drawn
        self.erase()
        write()
        if was_drawn:
            self._draw()

    def erase(self) -> None:
        """Takes the bar away."""
        if self._drawn:
            self._write(f"\r{' ' * self._drawn}\r")
            self._drawn = 0

    def _draw(self) -> None:
        filled = self._done * _BAR // max(self._length, 1)
        text = f"{self._label} [{'#' * filled}{'-' * (_BAR - filled)}] {self._spelled(self._done, self._length)}"
        text = text[: max(shutil.get_terminal_size().columns - 1, 0)]
        self._write(f"\r{text:{self._drawn}}")
        self._drawn, self._last = len(text), time.monotonic()

    def _write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


@contextmanager
def bar_below(label: str, length: int, spelled: Callable[[int, int], str] = of_all) -> Iterator[BarBelow]:
    """A bar for as long as the block runs."""
    bar = BarBelow(label, length, spelled)
    try:
        yield bar
    finally:
        bar.erase()
