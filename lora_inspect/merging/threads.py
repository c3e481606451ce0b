"""Threads that take one job after the other, and help each other with the parts of one.

The parts of a sum come in any order and are added up in one.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Generic, TypeVar

from lora_inspect.errors import CouldNotWorkError
from lora_inspect.files.deferred_signals import noted_signals
from lora_inspect.progress import Progress

Sum = TypeVar("Sum")


class InOrder(Generic[Sum]):
    """The sum of parts 0, 1, 2, … by `add(sum, part)`, each added in its turn; `total` is None without parts.

    Serves several threads. Parts that came before their turn are kept until then.
    """

    def __init__(self, add: Callable[[Sum, Sum], Sum]) -> None:
        self.total: Sum | None = None
        self._add, self._next = add, 0
        self._early: dict[int, Sum] = {}
        self._adding = Lock()

    def put(self, number: int, part: Sum) -> None:
        """Add a part, of a number that no other part has."""
        with self._adding:
            self._early[number] = part
            while self._next in self._early:
                due = self._early.pop(self._next)
                self.total = due if self.total is None else self._add(self.total, due)
                self._next += 1


Tools = TypeVar("Tools")


# Seconds between two tellings of how far it is, and after which whoever waits looks whether all is over.
_EVERY = 0.1
# More members than a crew has.
_ALL = 1 << 16


class _Void(BaseException):
    """Raised in a job without use: an earlier one failed, or the crew is over."""


class Job(Generic[Tools]):
    """The work of one member of a crew, and the bytes of memory that it takes besides the tools."""

    def __init__(self, do: Callable[["Worker[Tools]"], None], memory: int = 0) -> None:
        self.do, self.memory = do, memory


class _Parts(Generic[Tools]):
    """The parts of a job, numbers below `count`: which is next, how many are in work, and the first that failed.

    As many as there are `hands` left may come to help.
    """

    def __init__(self, order: int, count: int, do: Callable[[Tools, int], None], hands: int) -> None:
        self.order, self.count, self.do, self.hands = order, count, do, hands
        self.next = self.in_work = 0
        self.failed: tuple[int, BaseException] | None = None

    @property
    def is_open(self) -> bool:
        return self.next < self.count and not self.failed


class Crew(Generic[Tools]):
    """One thread for each of the tools; each thread calls `begin` first.

    Jobs begin in their order, and each is made when its turn comes. The first one that fails decides the error; the
    same holds for the parts of a job. The results and errors do not depend on the number of threads. Jobs that together
    take more than `memory` bytes are not done at the same time.
    """

    def __init__(self, tools: Sequence[Tools], memory: int, begin: Callable[[], None] = lambda: None) -> None:
        self._tools, self._memory, self._begin = tools, memory, begin
        self._changed = threading.Condition()
        self._alone = threading.Lock()
        self._jobs: Iterator[tuple[int, Job[Tools]]] = iter(())
        self._due: tuple[int, Job[Tools]] | None = None
        self._parts: list[_Parts[Tools]] = []
        self._working = self._reserved = self._done = 0
        self._failed: tuple[int, BaseException] | None = None
        self._is_over = False

    def run(self, jobs: Iterable[Job[Tools]], progress: Progress) -> None:
        """Do all jobs, and report their progress in the calling thread.

        Raises the error of the first job that failed, or of making one; later jobs may not have been done. An error
        from the progress, or from a signal that ends the process, comes once no thread works any more.
        """
        self._jobs = enumerate(jobs)
        self._due = next(self._jobs, None)
        told = 0
        with noted_signals() as is_interrupted, self._at_work() as threads:
            while alive := [thread for thread in threads if thread.is_alive()]:
                alive[0].join(_EVERY)
                self._is_over = self._is_over or is_interrupted()
                told, before = self._done, told
                progress(told - before)
        if self._failed:
            raise self._failed[1]
        progress(self._done - told)

    @contextmanager
    def _at_work(self) -> Iterator[list[threading.Thread]]:
        """Yield the threads; after the block they have ended, so their outputs may be closed."""
        threads: list[threading.Thread] = []
        try:
            for tools in self._tools if self._due else ():
                if not _starts(thread := threading.Thread(target=self._serve, args=(tools,))):
                    break
                threads.append(thread)
            if self._due and not threads:
                raise CouldNotWorkError(
                    "the system refuses to start a thread; close other programs, or raise the limit of processes."
                )
            yield threads
        finally:
            self._is_over = True
            for thread in threads:
                thread.join()

    def done(self, amount: int) -> None:
        """Report, in one of the threads, that so much more is done."""
        with self._changed:
            self._done += amount

    def is_void(self, order: int) -> bool:
        """Return True if nobody needs the result of the job with this number."""
        return self._is_over or (self._failed is not None and self._failed[0] < order)

    def spread(self, tools: Tools, order: int, count: int, do: Callable[[Tools, int], None], most: int) -> None:
        """Share the parts of a job among at most `most` members: this one and free ones."""
        parts = _Parts(order, count, do, most - 1)
        with self._changed:
            self._parts.append(parts)
            self._changed.notify_all()
        try:
            self._take_part(tools, parts)
            with self._changed:
                while parts.in_work:
                    self._changed.wait(_EVERY)
        finally:
            with self._changed:
                self._parts.remove(parts)
        if parts.failed:
            raise parts.failed[1]
        if parts.next < count:
            raise _Void

    @contextmanager
    def alone(self, order: int) -> Iterator[None]:
        """Let only one job at a time into the block."""
        while not self._alone.acquire(timeout=_EVERY):
            if self.is_void(order):
                raise _Void
        try:
            yield
        finally:
            self._alone.release()

    def _serve(self, tools: Tools) -> None:
        self._begin()
        while True:
            with self._changed:
                job = self._next_job()
                parts = None if job else self._open_parts()
                if job is None and parts is None:
                    if not self._working and not self._has_next():
                        return
                    self._changed.wait(_EVERY)
            if job:
                self._do(tools, *job)
            elif parts:
                self._take_part(tools, parts)

    def _has_next(self) -> bool:
        return self._due is not None and not self._is_over and self._failed is None

    def _next_job(self) -> tuple[int, Job[Tools]] | None:
        """Return the job that begins now, where there is memory for it."""
        due = self._due
        if due is None or not self._has_next():
            return None
        order, job = due
        if self._reserved and self._reserved + job.memory > self._memory:
            return None
        self._working += 1
        self._reserved += job.memory
        self._due = self._made(order + 1)
        return due

    def _made(self, order: int) -> tuple[int, Job[Tools]] | None:
        """Return the job of this number, where there is one and it can be made."""
        try:
            return next(self._jobs, None)
        except BaseException as error:  # the thread that waits for the result raises it
            self._failed = self._failed or (order, error)
            return None

    def _open_parts(self) -> _Parts[Tools] | None:
        """Return parts that the asking member helps with from now on."""
        parts = [each for each in self._parts if each.hands and each.is_open and not self.is_void(each.order)]
        first = min(parts, key=lambda each: each.order, default=None)
        if first:
            first.hands -= 1
        return first

    def _do(self, tools: Tools, order: int, job: Job[Tools]) -> None:
        try:
            job.do(Worker(self, tools, order))
        except _Void:
            pass
        except BaseException as error:  # the thread that waits for the result raises it
            with self._changed:
                if self._failed is None or order < self._failed[0]:
                    self._failed = order, error
        finally:
            with self._changed:
                self._working -= 1
                self._reserved -= job.memory
                self._changed.notify_all()

    def _take_part(self, tools: Tools, parts: _Parts[Tools]) -> None:
        while True:
            with self._changed:
                if not parts.is_open or self.is_void(parts.order):
                    return
                number = parts.next
                parts.next += 1
                parts.in_work += 1
            error: BaseException | None = None
            try:
                parts.do(tools, number)
            except BaseException as raised:  # the thread that shared the job raises it
                error = raised
            with self._changed:
                parts.in_work -= 1
                if error and (parts.failed is None or number < parts.failed[0]):
                    parts.failed = number, error
                if not parts.in_work:
                    self._changed.notify_all()


class Worker(Generic[Tools]):
    """One of a crew at a job, the number `order` of all."""

    def __init__(self, crew: Crew[Tools], tools: Tools, order: int) -> None:
        self.tools = tools
        self._crew, self._order = crew, order

    def done(self, amount: int) -> None:
        """Report that so much more is done."""
        self._crew.done(amount)

    def spread(self, count: int, do: Callable[[Tools, int], None], most: int = _ALL) -> None:
        """Call `do` with each number below `count`, by any free member with its own tools.

        At most `most` members work at the same time. Raises the error of the first number that failed; later ones may
        not have been done.
        """
        self._crew.spread(self.tools, self._order, count, do, most)

    def total(
        self, count: int, part: Callable[[Tools, int], Sum], add: Callable[[Sum, Sum], Sum], most: int = _ALL
    ) -> Any:
        """Return the sum, in order, of the parts of all numbers below `count`, made by at most `most` free members.

        None where there is no number.
        """
        sums: InOrder[Sum] = InOrder(add)
        self.spread(count, lambda tools, number: sums.put(number, part(tools, number)), most)
        return sums.total

    def alone(self) -> Any:
        """Return a context that only one job at a time enters, for work that takes much memory."""
        return self._crew.alone(self._order)


def _starts(thread: threading.Thread) -> bool:
    """Start a thread; False if the system has none to give."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
