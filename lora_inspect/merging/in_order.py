"""Sums whose parts come in any order and are added up in one."""

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Sum = TypeVar("Sum")


class InOrder(Generic[Sum]):
    """The sum of parts 0, 1, 2, … by `add(sum, part)`, each added once all before it are; `total` is None without any.

    Serves several threads. Parts that came before their turn are kept until then.
    """

    def __init__(self, add: Callable[[Sum, Sum], Sum]) -> None:
        self.total: Sum | None = None
        self._add, self._next = add, 0
        self._early: dict[int, Sum] = {}
        self._adding = Lock()

    def put(self, number: int, part: Sum) -> None:
        """Adds a part, of a number that no other part has."""
        with self._adding:
            self._early[number] = part
            while self._next in self._early:
                due = self._early.pop(self._next)
                self.total = due if self.total is None else self._add(self.total, due)
                self._next += 1
