"""How a long computation tells how far it is, without knowing whether anyone looks."""

from collections.abc import Callable

Progress = Callable[[int], None]


def silent(amount: int) -> None:
    """The progress of a computation that nobody watches."""


class Share:
    """Tells a whole of `size` once, however often what it stands for is gone through: `work` is the sum of all goings.

    `work` may be given late, before the first of it is done; what `done` has not told is told by `finish`.
    """

    def __init__(self, progress: Progress, size: int) -> None:
        self.work = size
        self._progress, self._size = progress, size
        self._done = self._told = 0

    def done(self, amount: int) -> None:
        """Says that so much more of the work is done."""
        self._done += amount
        self._tell(min(self._size * self._done // max(self.work, 1), self._size))

    def finish(self) -> None:
        """Says that there is no more."""
        self._tell(self._size)

    def _tell(self, due: int) -> None:
        if due > self._told:
            self._progress(due - self._told)
            self._told = due
