"""The limits of a wait for a store: the timeout, the least rate, and the moment of a note. Standard library only.

A request that brings nothing for the timeout is given up. A request that brings bytes at less than LEAST_RATE for
RATE_SECONDS is given up, too. `Wait` judges one request; the code that receives an answer calls `heard`.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

from lora_inspect.stores.store_failures import Silent, too_slow

# In seconds: how long a request may bring nothing where nobody says otherwise, and from when on a note tells of it.
TIMEOUT, NOTE_AFTER = 60.0, 5.0
# In bytes per second, and over how many seconds it is measured.
LEAST_RATE, RATE_SECONDS = 1000, 30.0

# The blocks of `timing_out` that are running, in the order of their beginning. They count in all threads, as the
# threads of a merge and that of the requests were not begun by whoever set the timeout.
_timeouts: dict[object, float] = {}


def timeout() -> float:
    """The timeout of requests in seconds."""
    return [TIMEOUT, *_timeouts.values()][-1]


@contextmanager
def timing_out(seconds: float) -> Iterator[None]:
    """A block in which requests of the whole process have this timeout; of several blocks the last one counts."""
    block = object()
    _timeouts[block] = seconds
    try:
        yield
    finally:
        del _timeouts[block]


# Called with the sentence of a note, in the thread of the requests.
Note = Callable[[str], None]
_note: Note | None = None
# How many requests for an address wait so long that a note told of it.
_noted: Counter[str] = Counter()


@contextmanager
def noting(note: Note) -> Iterator[None]:
    """A block in which `note` is told of long waits; outside of such blocks nobody is."""
    global _note
    before, _note = _note, note
    try:
        yield
    finally:
        _note = before


class Wait:
    """The wait for one request, however often it is tried, as a context manager. It is used in one thread.

    A note tells of it once, and only if no other request for the same address waits so long.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_noted = False

    def __enter__(self) -> "Wait":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_noted:
            _noted[self._address] -= 1

    @contextmanager
    def trying(self) -> Iterator[None]:
        """A block in which the request is tried once; tasks that begin in it report answers to this wait."""
        self.seconds = timeout()
        self._last = time.monotonic()
        self._came = 0
        self._samples: deque[tuple[float, int]] = deque()
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def hear(self, count: int) -> None:
        """Says that the store has answered, with so many bytes of the file."""
        self._last = time.monotonic()
        self._came += count

    def check(self) -> None:
        """Raises Silent or LoraInspectError where the try has waited too long, and has a long wait noted."""
        now = time.monotonic()
        if self._came and self._rate_is_too_low(now):
            raise too_slow(self._address, LEAST_RATE, RATE_SECONDS)
        quiet = now - self._last
        if quiet >= self.seconds:
            raise Silent(self.seconds)
        if quiet >= NOTE_AFTER:
            self.note(f"no answer for {NOTE_AFTER:g} s; waiting up to {self.seconds:g} s (--timeout)")

    def note_pause(self, seconds: float, asked: float | None) -> None:
        """Has a pause before the next try noted, where the server has asked for it and it is long."""
        if asked is not None and seconds >= NOTE_AFTER:
            self.note(f"the server asks to wait for {seconds:.0f} s; waiting")

    def note(self, says: str) -> None:
        """Has one sentence about the address told, but for the second one of this request."""
        if self._is_noted:
            return
        self._is_noted = True
        _noted[self._address] += 1
        if _note is not None and _noted[self._address] == 1:
            _note(f"{self._address}: {says}.")

    def _rate_is_too_low(self, now: float) -> bool:
        """Return True if too few bytes came in the last RATE_SECONDS; the timeout judges a complete silence."""
        self._samples.append((now, self._came))
        while len(self._samples) > 1 and now - self._samples[1][0] >= RATE_SECONDS:
            self._samples.popleft()
        first, before = self._samples[0]
        return now - first >= RATE_SECONDS and before < self._came < before + LEAST_RATE * RATE_SECONDS


_current: ContextVar[Wait | None] = ContextVar("_current", default=None)


def heard(count: int = 0) -> None:
    """Tells the wait of the running request that the store has answered, with so many bytes of the file."""
    if wait := _current.get():
        wait.hear(count)
