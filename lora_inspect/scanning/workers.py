"""A function over many things in several processes, with the results in the order of the things.

The other processes start only when it shows that they pay. Each takes one thing after another over a pipe of its own,
and ends when that closes, for any reason. Its end damages nothing.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lora_inspect.files.system import BEARS_COPIES

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Thing = TypeVar("Thing")
Result = TypeVar("Result")

# How many things a process has, so that one is at hand while this process is busy.
_AHEAD = 2
# What a process says first.
_READY = "ready"


class HelperProcess(Generic[Thing, Result]):
    """A process that was started by `method`, "fork" or "spawn"; `given` are the numbers of its unanswered tasks.

    `is_lost` says that it has died, or that the system refused it. A copy closes the `others`, whose processes would
    not see their pipes close otherwise.
    """

    def __init__(self, function: Callable[[Thing], Result], method: str, others: "Sequence[Connection]" = ()) -> None:
        from multiprocessing import get_context

        context: Any = get_context(method)
        self.given: deque[int] = deque()
        self.is_lost = self._is_ready = False
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        inherited = (*others, self.connection) if method == "fork" else ()
        self._process = context.Process(target=_serve, args=(function, theirs, inherited), daemon=True)
        try:
            with _ignored_interrupts():
                self._process.start()
        except OSError:
            self._process, self.is_lost = None, True
        theirs.close()

    @property
    def has_room(self) -> bool:
        """True if it can take another thing; a starting process cannot."""
        return self._is_ready and not self.is_lost and len(self.given) < _AHEAD

    def give(self, number: int, thing: Thing) -> None:
        """Make the process do one thing."""
        self.given.append(number)
        with suppress(OSError):  # where it has died, that shows when its answers are taken
            self.connection.send(thing)

    def finished(self) -> Iterator[tuple[int, Result]]:
        """Yield the answers that have arrived, each with the number of its thing."""
        try:
            while not self.is_lost and self.connection.poll():
                answer = self.connection.recv()
                if self._is_ready:
                    yield self.given.popleft(), answer
                self._is_ready = True
        except Exception:  # the end of the pipe, or an answer that cannot be put together again
            self.is_lost = True

    def end(self) -> None:
        """End the process at once."""
        self.connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Make a process that is started in the block ignore Ctrl-C, which this process answers."""
    if threading.current_thread() is not threading.main_thread():  # no other may say what signals do
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _serve(function: Callable[[Any], Any], connection: "Connection", inherited: "Sequence[Connection]") -> None:
    """Serve as the other process until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for one in inherited:
        one.close()
    with suppress(Exception):  # an answer that cannot be sent is one that is lost
        connection.send(_READY)
        while True:
            connection.send(function(connection.recv()))


# What starting a process costs, in seconds: a copy of this one, or a new Python that imports all anew.
_COPY, _NEW = 0.02, 1.0


def side_by_side(
    function: Callable[[Thing], Result], things: Sequence[Thing], jobs: int, lost: Callable[[Thing], Result]
) -> Generator[Result, None, None]:
    """Yield the result for each thing, in order and as soon as possible, from up to `jobs` processes with this one.

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
    """Return True if half of the rest takes longer than the start of a process."""
    return done > 1 and seconds / done * left / 2 > (_COPY if _can_be_copied() else _NEW)


def _can_be_copied() -> bool:
    """Return True if a process can be a copy of this one.

    A copy next to other threads would hold their locks for ever.
    """
    return BEARS_COPIES and threading.active_count() == 1


class _Team(Generic[Thing, Result]):
    """The other processes, and which things each of them was given."""

    def __init__(self, function: Callable[[Thing], Result]) -> None:
        self._function = function
        self.helpers: list[HelperProcess[Thing, Result]] = []

    def start(self, count: int) -> None:
        """Start `count` processes; one that the system refuses counts as lost."""
        method = "fork" if _can_be_copied() else "spawn"
        for _ in range(count):
            self.helpers.append(HelperProcess(self._function, method, [one.connection for one in self.helpers]))

    def feed(self, waiting: deque[int], things: Sequence[Thing]) -> None:
        """Give each process with room the next waiting things."""
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
        """Collect the results; things that a dead process had not begun wait again."""
        for helper in self.helpers:
            done.update(helper.finished())
            if helper.is_lost and helper.given:
                first = helper.given.popleft()
                done[first] = lost(things[first])
                waiting.extendleft(reversed(helper.given))
                helper.given.clear()

    def wait(self) -> None:
        """Wait until a process has an answer, or has died."""
        from multiprocessing.connection import wait

        busy: list[Connection] = [helper.connection for helper in self.helpers if not helper.is_lost]
        wait(busy)

    def end(self) -> None:
        """End all processes."""
        for helper in self.helpers:
            helper.end()
