"""Tasks of a benchmark in processes of their own, on one processor: no other thread of theirs slows one down."""

import os
import resource
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


def pin() -> None:
    """Run this process, and those that it starts, on one processor where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def processor_time(script: str, *words: str) -> tuple[float, str]:
    """The processor time of a script's task in a process of its own, and all that it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": ROOT}
    command = [sys.executable, script, "--task", *words]
    ended = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended.stdout
