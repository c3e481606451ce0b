"""Threads that compute a module each, with numpy's BLAS on one thread; results do not depend on their number.

The threads of BLAS are a state of the process: the library gets its own back once the last block ends, also in a
program that calls from several threads.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from threading import Lock, local
from typing import Any, TypeVar

import numpy
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from lora_inspect.algebra.linear.factors import Array
from lora_inspect.files.system import usable_cores

# More threads than that wait for memory, and each holds the factors of a module.
_MOST_THREADS = 8

Item = TypeVar("Item")
Made = TypeVar("Made")


class Workspace(local):
    """Memory that each thread keeps for the sum of one module after the other, so that the system need not clear it.

    Whatever the thread had there before is overwritten.
    """

    def __init__(self) -> None:
        self._held: dict[str, NDArray[numpy.uint8]] = {}

    def empty(self, side: str, shape: tuple[int, int], kind: type) -> Array:
        """Return an array without values, the only one of its `side` in this thread."""
        size = prod(shape) * numpy.dtype(kind).itemsize
        held = self._held.get(side)
        if held is None or held.size < size:
            held = self._held[side] = numpy.empty(size, numpy.uint8)
        found: Array = held[:size].view(kind).reshape(shape)
        return found


def made_in_order(make: Callable[[Item], Made], items: Iterable[Item], threads: int | None = None) -> Iterator[Made]:
    """Make something of each item in several threads, and yield it in the order of the items.

    At most one thing more than there are threads waits to be taken. `threads` is None for as many as there are cores.
    """
    count = min(_MOST_THREADS, usable_cores()) if threads is None else threads
    with one_blas_thread(), ThreadPoolExecutor(count) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(_quietly, make, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _quietly(make: Callable[[Item], Made], item: Item) -> Made:
    """Make something without warnings of products beyond the range of numbers, which are looked at afterwards."""
    with numpy.errstate(all="ignore"):
        return make(item)


_lock = Lock()
_inside = 0
_limits: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Compute every product of numpy in the block in the thread that asks for it."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _limits
    with _lock:
        if not _inside:
            _limits = threadpool_limits(limits=1, user_api="blas")
        _inside += 1


def _leave() -> None:
    global _inside, _limits
    with _lock:
        _inside -= 1
        if not _inside and _limits:
            _limits.restore_original_limits()
            _limits = None
