"""Progress of a long computation, reported whether or not anyone watches."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int], None]
# Begins a pass over a number of things, and returns the context of its progress.
Passes = Callable[[int], AbstractContextManager[Progress]]


def silent(amount: int) -> None:
    """Ignore the progress of a computation that nobody watches."""


def silent_pass(length: int) -> AbstractContextManager[Progress]:
    """Begin a pass over `length` things that nobody watches."""
    return nullcontext(silent)


class PartialProgress:
    """Progress of a whole of `size`, reported once although the work passes over it several times.

    `work` is the sum of all passes. Set it before the first of them is done, at the latest. `finish` reports the part
    that `done` has not reported.
    """

    def __init__(self, progress: Progress, size: int) -> None:
        self.work = size
        self._progress, self._size = progress, size
        self._done = self._told = 0

    def done(self, amount: int) -> None:
        """Count so much more of the work as done."""
        self._done += amount
        self._tell(min(self._size * self._done // max(self.work, 1), self._size))

    def finish(self) -> None:
        """Report the rest: the work is over."""
        self._tell(self._size)

    def _tell(self, due: int) -> None:
        if due > self._told:
            self._progress(due - self._told)
            self._told = due
