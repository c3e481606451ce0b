"""Runs in forked processes: several at the same moment, and runs that kill themselves at one of their system calls."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from killed_calls import kill_at_call

from lora_inspect.errors import LoraInspectError, WouldOverwriteError

# How often in a row the process must have the same threads, and the seconds between two looks.
_LOOKS, _PAUSE = 4, 0.005


def wait_for_ended_threads():
    """Waits until the threads of this process stay the same, where the system shows them.

    A thread that Python has joined may still free its memory in MKL, behind a lock that a fork would copy as held.
    """
    tasks = Path("/proc/self/task")
    threads, same = set(), 0
    while tasks.exists() and same < _LOOKS:
        time.sleep(_PAUSE)
        before, threads = threads, {one.name for one in tasks.iterdir()}
        same = same + 1 if threads == before else 0


def _ran(barrier, answers, name, run):
    barrier.wait()
    try:
        run()
        answers.put((name, 0))
    except LoraInspectError as error:
        answers.put((name, str(error)))


def race(runs):
    """Runs all of a dict at the same moment, each in its own process; returns 0 or the error by name."""
    forking = multiprocessing.get_context("fork")
    barrier, answers = forking.Barrier(len(runs)), forking.SimpleQueue()
    processes = [forking.Process(target=_ran, args=(barrier, answers, *one)) for one in runs.items()]
    wait_for_ended_threads()
    for one in processes:
        one.start()
    found = dict(answers.get() for _ in processes)
    for one in processes:
        one.join()
        assert one.exitcode == 0
    return found


def jobs_with_kills(job, count, seed, before=lambda: None):
    """Makes `out` from two jobs, `count` times: one of them is killed at a drawn call, and then both run again.

    `job(text)` runs the job 1/2 or 2/2, and `before` runs before each process is forked. Yields behind the jobs' next
    runs, with whether the kill came before the job's end.
    """
    before()
    calls = {text: calls_of(partial(job, text)) for text in ("1/2", "2/2")}
    chance, killed = random.Random(seed), False
    for _ in range(count):
        shutil.rmtree("out", ignore_errors=True)
        shutil.rmtree("out.parts", ignore_errors=True)
        order = chance.choice([("1/2", "2/2"), ("2/2", "1/2")])
        at = chance.choice(order)
        for text in order:
            if text == at:
                before()
                killed = killed_at(partial(job, text), chance.randint(1, calls[text]))
            elif not os.path.exists("out"):
                job(text)
        for text in order:
            with suppress(WouldOverwriteError):  # the killed job had come so far
                job(text)
        yield killed


def calls_of(run):
    """Returns the number of system calls of a run that name the output."""
    assert not killed_at(run, 0)
    return int(Path("calls").read_text())


def killed_at(run, last):
    """Runs something that kills itself at the call with this number that names the output; returns whether it did."""
    wait_for_ended_threads()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    try:
        calls = kill_at_call(last, "out")
        run()
        Path("calls").write_text(str(calls()))
    finally:
        os._exit(0)
