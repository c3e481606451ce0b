"""The processes that torchrun started, as one of them sees them: common work, and shared outcomes.

All wait in Python, a moment at a time, so that a signal that ends a process ends it at once.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from lora_inspect.errors import REFUSED_STATUS, CouldNotWorkError, LoraInspectError, RefusedError, kind_of, with_code
from lora_inspect.files.system import usable_cores
from lora_inspect.progress import Progress
from lora_inspect.torchrun import Rank

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

Result = TypeVar("Result")

# Seconds between two looks at the others while waiting for them, and while at work.
_WAITING, _WORKING = 0.05, 0.5
# How long all may take to be there, and how long the first one may take to say why it failed.
_TO_MEET, _TO_TELL = timedelta(minutes=10), 10.0
_THREADS = "OMP_NUM_THREADS"
_FAILED, _DONE, _TOLD = "failed", "done", "told"


class Elsewhere(Exception):
    """Another process has failed, and the first one says so; with the `status` that all end with."""

    status = REFUSED_STATUS


class Processes:
    """One process' view of all processes; `sentence_of` returns the user's sentence for an error."""

    def __init__(self, rank: Rank, store: "Store", sentence_of: Callable[[Exception], str]) -> None:
        self.rank = rank
        self._store, self._sentence_of = store, sentence_of
        self._phases = self._due = self._shown = 0
        self._looked = 0.0

    def together(self, work: Callable[[], Result], of_all: Progress = lambda amount: None) -> Result:
        """Return the result of this process' `work` once all have finished; `of_all` receives the progress of all.

        If one of them fails, the others stop at their next progress report: the first process raises the error of the
        failed one, the others raise Elsewhere.
        """
        self._phases += 1
        try:
            result = work()
        except Elsewhere:
            pass
        except Exception as error:  # the first process has to tell it, whatever it is
            self._store.set(self._failed(self.rank.number), f"{kind_of(error).code} {self._sentence_of(error)}")
            self._store.add(self._failed(), 1)
        self._wait_for_all(of_all)
        if not self._store.add(self._failed(), 0):
            return result
        if not self.rank.is_first:
            ended = Elsewhere()
            ended.status = self._failure().status
            raise ended
        raise self._failure()

    def equal(self, text: str, difference: Callable[[str], str]) -> None:
        """Raise LoraInspectError if the text differs from that of the first process.

        `difference` describes the difference from the first process' text.
        """
        if self.rank.is_first:
            self._store.set("text", text)
        own = hashlib.sha256(text.encode()).digest()
        first, *_ = self._gathered(own)

        def check() -> None:
            if own != first:
                raise RefusedError(difference(self._store.get("text").decode()))

        self.together(check)

    def progress(self, of_all: Progress) -> Progress:
        """Return the progress of this process: it reports to all, and `of_all` receives the progress of all."""

        def tell(amount: int) -> None:
            self._due += amount
            if time.monotonic() - self._looked >= _WORKING:
                self._looked = time.monotonic()
                self._show(of_all)
                if self._store.add(self._failed(), 0):
                    raise Elsewhere

        return tell

    def reported(self) -> None:
        """Note in the first process that it has reported the error; wait for that in the others."""
        if self.rank.is_first:
            self._store.set(_TOLD, "")
            return
        until = time.monotonic() + _TO_TELL
        while not self._store.check([_TOLD]) and time.monotonic() < until:
            time.sleep(_WAITING)

    def _show(self, of_all: Progress) -> None:
        """Report the progress since the last call; the first process also reports the progress of all."""
        due, self._due = self._due, 0
        done = self._store.add(_DONE, due)
        if self.rank.is_first:
            of_all(done - self._shown)
            self._shown = done

    def _wait_for_all(self, of_all: Progress) -> None:
        self._show(of_all)
        arrived = self._store.add(f"arrived/{self._phases}", 1)
        while arrived < self.rank.of:
            time.sleep(_WAITING)
            self._show(of_all)
            arrived = self._store.add(f"arrived/{self._phases}", 0)
        self._show(of_all)

    def _gathered(self, own: bytes) -> list[bytes]:
        """Return the bytes of each process, of equal length, in the order of the processes."""
        import torch
        from torch import distributed

        found = [torch.zeros(len(own), dtype=torch.uint8, device="cpu") for _ in range(self.rank.of)]
        distributed.all_gather(found, torch.frombuffer(bytearray(own), dtype=torch.uint8))
        return [bytes(one.tolist()) for one in found]

    def _failed(self, number: int | None = None) -> str:
        """Return the key of the count of failures in this phase, or of the message of process `number`.

        Others may be in the next phase already: they have failed there, and are waited for there.
        """
        return f"{_FAILED}/{self._phases}" + ("" if number is None else f"/{number}")

    def _failure(self) -> LoraInspectError:
        """Return the error of the failed processes, with the number of the first one unless all failed."""
        said = {
            number: self._store.get(self._failed(number)).decode()
            for number in range(self.rank.of)
            if self._store.check([self._failed(number)])
        }
        number, text = next(iter(said.items()))
        code, _, sentence = text.partition(" ")
        is_of_all = number == 0 or len(said) == self.rank.of
        return with_code(code)(sentence if is_of_all else f"process {number}: {sentence}")


def threads_of(rank: Rank) -> int | None:
    """Return the number of threads that are a process' share of the machine; None if the user has chosen one.

    torchrun sets one thread for each process if the user sets none.
    """
    return max(1, usable_cores() // rank.here) if os.environ.get(_THREADS, "1") == "1" else None


@contextmanager
def all_ranks(rank: Rank, sentence_of: Callable[[Exception], str]) -> Iterator[Processes]:
    """Yield the processes once all of them are there; LoraInspectError if they cannot reach each other."""
    import torch
    from torch import distributed

    if threads := threads_of(rank):
        torch.set_num_threads(threads)
    try:
        server, *_ = next(distributed.rendezvous("env://", timeout=_TO_MEET))  # type: ignore[attr-defined]
        run = f"lora_inspect/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store = distributed.PrefixStore(run, server)  # type: ignore[attr-defined]
        ranks = Processes(rank, store, sentence_of)
        ranks.together(lambda: None)
        distributed.init_process_group("gloo", store=store, rank=rank.number, world_size=rank.of, timeout=_TO_MEET)
        yield ranks
    except LoraInspectError:
        raise
    except (RuntimeError, ValueError) as error:
        raise CouldNotWorkError(
            f"the processes of torchrun cannot reach each other ({error}); run it again."
        ) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
