"""Runs that kill themselves at one of their calls of the system, in processes of their own."""

import os
import signal
import sys
from pathlib import Path


def calls_of(run):
    """How many calls of the system that name the output a run makes."""
    assert not killed_at(run, 0)
    return int(Path("calls").read_text())


def killed_at(run, last):
    """Runs something that kills itself at the call with this number that names the output; whether it came to that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    calls = 0

    def call(event, arguments):
        nonlocal calls
        if any(isinstance(one, (str, bytes)) and b"out" in os.fsencode(one) for one in arguments):
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(call)
        run()
        Path("calls").write_text(str(calls))
    finally:
        os._exit(0)
