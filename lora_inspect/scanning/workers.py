"""A function over many things, in several processes at the same time, with the results in the order of the things.

The others are started only once it shows that they pay. Each is fed over a pipe of its own and ends when that closes,
whatever ended this process.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from lora_inspect.files.system import BEARS_COPIES
from lora_inspect.scanning.helper_process import HelperProcess

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Thing = TypeVar("Thing")
Result = TypeVar("Result")

# What starting a process costs, in seconds: a copy of this one, or a new Python that imports all anew.
_COPY, _NEW = 0.02, 1.0


def side_by_side(
    function: Callable[[Thing], Result], things: Sequence[Thing], jobs: int, lost: Callable[[Thing], Result]
) -> Generator[Result, None, None]:
    """The result for each thing, in their order and as soon as it is there, from up to `jobs` processes, this one too.

    `function` and the things have to be picklable, and so do the results. `lost` makes the result for a thing that a
    process died of. Whoever does not take all results closes the iterator, which ends the processes.
    """
    team = _Team(function)
    waiting = deque(range(len(things)))
    done: dict[int, Result] = {}
    began = time.perf_counter()
    try:
        for told in range(len(things)):
            while told not in done:
                if jobs > 1 and not team.helpers and _pays(time.perf_counter() - began, told, len(waiting)):
                    team.start(jobs - 1)
                team.feed(waiting, things)
                team.collect(done, waiting, things, lost)
                if told not in done and waiting:
                    number = waiting.popleft()
                    done[number] = function(things[number])
                elif told not in done:
                    team.wait()
            yield done.pop(told)
    finally:
        team.end()


def _pays(seconds: float, done: int, left: int) -> bool:
    """Whether half of what is left takes longer than starting a process does."""
    return done > 1 and seconds / done * left / 2 > (_COPY if _can_be_copied() else _NEW)


def _can_be_copied() -> bool:
    """Whether a process can be a copy of this one: beside other threads it would have their locks for ever."""
    return BEARS_COPIES and threading.active_count() == 1


class _Team(Generic[Thing, Result]):
    """The other processes, and which things each of them was given."""

    def __init__(self, function: Callable[[Thing], Result]) -> None:
        self._function = function
        self.helpers: list[HelperProcess[Thing, Result]] = []

    def start(self, count: int) -> None:
        """Starts so many; those that the system refuses are none."""
        method = "fork" if _can_be_copied() else "spawn"
        for _ in range(count):
            self.helpers.append(HelperProcess(self._function, method, [one.connection for one in self.helpers]))

    def feed(self, waiting: deque[int], things: Sequence[Thing]) -> None:
        """Gives each process that has room the next things that wait."""
        for helper in self.helpers:
            while waiting and helper.has_room:
                number = waiting.popleft()
                helper.give(number, things[number])

    def collect(
        self,
        done: dict[int, Result],
        waiting: deque[int],
        things: Sequence[Thing],
        lost: Callable[[Thing], Result],
    ) -> None:
        """Takes what is done; what a process that died had not begun waits again."""
        for helper in self.helpers:
            done.update(helper.finished())
            if helper.is_lost and helper.given:
                first = helper.given.popleft()
                done[first] = lost(things[first])
                waiting.extendleft(reversed(helper.given))
                helper.given.clear()

    def wait(self) -> None:
        """Returns once a process has an answer, or has died."""
        from multiprocessing.connection import wait

        busy: list[Connection] = [helper.connection for helper in self.helpers if not helper.is_lost]
        wait(busy)

    def end(self) -> None:
        """Ends all processes."""
        for helper in self.helpers:
            helper.end()
