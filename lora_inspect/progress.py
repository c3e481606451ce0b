"""How a long computation tells how far it is, without knowing whether anyone looks."""

from collections.abc import Callable

Progress = Callable[[int], None]


def silent(amount: int) -> None:
    """The progress of a computation that nobody watches."""
