"""A process that does one thing after the other for this one, and holds nothing that its end could damage."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Thing = TypeVar("Thing")
Result = TypeVar("Result")

# How many things a process has, so that one is at hand while this process is busy.
_AHEAD = 2
# What a process says first.
_READY = "ready"


class HelperProcess(Generic[Thing, Result]):
    """A process that was started by `method`, "fork" or "spawn"; what it was `given`, by number, and has not answered.

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
        """Whether it can be given another thing; one that is still being started has none."""
        return self._is_ready and not self.is_lost and len(self.given) < _AHEAD

    def give(self, number: int, thing: Thing) -> None:
        """Has it do one thing."""
        self.given.append(number)
        with suppress(OSError):  # where it has died, that shows when its answers are taken
            self.connection.send(thing)

    def finished(self) -> Iterator[tuple[int, Result]]:
        """The answers that have arrived, each with the number of its thing."""
        try:
            while not self.is_lost and self.connection.poll():
                answer = self.connection.recv()
                if self._is_ready:
                    yield self.given.popleft(), answer
                self._is_ready = True
        except Exception:  # the end of the pipe, or an answer that cannot be put together again
            self.is_lost = True

    def end(self) -> None:
        """Ends it at once, whatever it does."""
        self.connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Has the process that is started meanwhile ignore Ctrl-C, which is for this one to answer."""
    if threading.current_thread() is not threading.main_thread():  # no other may say what signals do
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _serve(function: Callable[[Any], Any], connection: "Connection", inherited: "Sequence[Connection]") -> None:
    """What the other process does until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for one in inherited:
        one.close()
    with suppress(Exception):  # an answer that cannot be sent is one that is lost
        connection.send(_READY)
        while True:
            connection.send(function(connection.recv()))
