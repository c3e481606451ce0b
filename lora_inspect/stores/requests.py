"""Requests to stores: at most eight at once, each tried again where its failure may pass, in the thread of fsspec.

Whoever asks waits in a thread of its own, which an interrupt reaches.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lora_inspect.stores.address import HF, S3, scheme_of
from lora_inspect.stores.client import Answer, Sink, file_system, waits
from lora_inspect.stores.patience import Wait
from lora_inspect.stores.store_failures import Transient, Tries

AT_ONCE = 8
# Ranges with fewer bytes between them are one request: to ask once more takes longer than to receive these.
GAP = 16 << 10
# What one request asks for at most, so that several carry a long range, and so that little is lost with one.
PIECE = 8 << 20
# In seconds: how often whoever waits looks up, and how often a request is asked whether it takes too long.
_EVERY, _CHECKED_EVERY = 0.5, 0.1

_Found = TypeVar("_Found")
_gates: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


def wait_for(address: str, task: Coroutine[Any, Any, _Found]) -> _Found:
    """Return the result of a task in the thread of fsspec; raise its error."""
    return result_of(_begin(address, task))


def fill(sinks: Sequence[Sink]) -> None:
    """Fills all of them, of one file or of several; raises LoraInspectError for the first that cannot be."""
    if waiting := [sink for sink in sinks if sink.left]:
        wait_for(waiting[0].address, _fill_each(waiting))


def read_each(address: str, answer: Answer, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of many ranges (position, how many) of a file, in their order; neighbours come in one request."""
    runs: list[tuple[int, int]] = []
    for start, count in sorted(ranges):
        stop = start + count
        if runs and start < runs[-1][1] + GAP and max(stop, runs[-1][1]) - runs[-1][0] <= PIECE:
            runs[-1] = runs[-1][0], max(stop, runs[-1][1])
        else:
            runs.append((start, stop))
    memories = {start: bytearray(stop - start) for start, stop in runs}
    fill([Sink(address, start, memory, answer) for start, memory in memories.items()])
    found = []
    starts = sorted(memories)
    for start, count in ranges:
        first = _last_before(starts, start)
        found.append(bytes(memories[first][start - first : start - first + count]))
    return found


def read_into(address: str, answer: Answer, start: int, memory: bytearray | memoryview) -> None:
    """Fills the memory with the bytes from a position on, by several requests where they are many."""
    view = memoryview(memory).cast("B")
    fill([Sink(address, start + first, view[first : first + PIECE], answer) for first in range(0, len(view), PIECE)])


def stream(address: str, answer: Answer, start: int, stop: int, ahead: int = 3) -> Iterator[bytearray]:
    """Yield the bytes of a long range piece by piece, while the next pieces are requested."""
    waiting: list[tuple[bytearray, concurrent.futures.Future[Any]]] = []
    try:
        while start < stop or waiting:
            while start < stop and len(waiting) <= ahead:
                memory = bytearray(min(PIECE, stop - start))
                waiting.append((memory, begin_fill(Sink(address, start, memory, answer))))
                start += len(memory)
            memory, future = waiting.pop(0)
            result_of(future)
            yield memory
    finally:
        for _, future in waiting:
            future.cancel()


async def tried(address: str, ask: Callable[[], Coroutine[Any, Any, _Found]]) -> _Found:
    """Return the result of a request, and repeat the request where its failure may pass."""
    tries = Tries(address)
    with Wait(address) as wait:
        while True:
            try:
                return await _once(wait, ask)
            except Transient as failure:
                pause = tries.pause(failure, wait.seconds)
                wait.note_pause(pause, failure.wait)
            await asyncio.sleep(pause)


async def _once(wait: Wait, ask: Callable[[], Coroutine[Any, Any, _Found]]) -> _Found:
    """Try a request once and return its result; cancel it if the wait says that it takes too long."""
    async with _gate():
        with wait.trying():
            task = asyncio.ensure_future(ask())
            task.add_done_callback(_look_at_failure)
            try:
                while not (await asyncio.wait({task}, timeout=_CHECKED_EVERY))[0]:
                    wait.check()
                return task.result()
            finally:
                if not task.done():
                    task.cancel()
                    # Until it has left its connection, but no longer: some libraries wait for a thread of theirs.
                    await asyncio.wait({task}, timeout=_EVERY)


def _look_at_failure(task: "asyncio.Future[Any]") -> None:
    """Retrieve the failure of an abandoned request, as asyncio logs failures that nobody has retrieved."""
    if not task.cancelled():
        task.exception()


def _begin(address: str, task: Coroutine[Any, Any, _Found]) -> concurrent.futures.Future[_Found]:
    try:
        file_system(address)  # which says what is missing for it
        from fsspec.asyn import get_loop
    except BaseException:  # an interrupt as well: Python warns of a coroutine that nobody runs or closes
        task.close()
        raise
    return asyncio.run_coroutine_threadsafe(task, get_loop())


def begin_fill(sink: Sink) -> concurrent.futures.Future[None]:
    """Begins to fill it, while whoever asks does something else."""
    return _begin(sink.address, _fill_one(sink))


def result_of(future: concurrent.futures.Future[_Found]) -> _Found:
    """Return the result of a future; raise its error."""
    try:
        # A wait without an end could not be interrupted everywhere.
        while not concurrent.futures.wait([future], _EVERY).done:
            waits(True)
        return future.result()
    except BaseException:  # an interrupt as well: no request outlives the wait for it
        future.cancel()
        raise
    finally:
        waits(False)


async def _fill_each(sinks: Iterable[Sink]) -> None:
    tasks = [asyncio.ensure_future(_fill_one(sink)) for sink in sinks]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _fill_one(sink: Sink) -> None:
    """Request bytes until all have come; a short answer is requested again."""
    get = _get_of(sink.address)
    tries = Tries(sink.address)
    with Wait(sink.address) as wait:
        while True:
            before = sink.position
            try:
                await _once(wait, lambda: get(sink))
                if not sink.left:
                    return
                failure = Transient(f"it sent {sink.position - sink.start:,} of {sink.stop - sink.start:,} bytes")
            except Transient as error:
                failure = error
            pause = tries.pause(failure, wait.seconds, sink.position - before)
            wait.note_pause(pause, failure.wait)
            await asyncio.sleep(pause)


def _get_of(address: str) -> Callable[[Sink], Coroutine[Any, Any, None]]:
    """Return the function that requests a sink's bytes once and keeps those before a failure."""
    if scheme_of(address) == S3:
        from lora_inspect.stores.s3 import get as get_of_s3

        return get_of_s3
    if scheme_of(address) == HF:
        from lora_inspect.stores.hub import get as get_of_hub

        return get_of_hub
    from lora_inspect.stores.http import get as get_of_server

    return get_of_server


def _gate() -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    if loop not in _gates:
        _gates[loop] = asyncio.Semaphore(AT_ONCE)
    return _gates[loop]


def _last_before(starts: Sequence[int], position: int) -> int:
    from bisect import bisect_right

    return starts[bisect_right(starts, position) - 1]
