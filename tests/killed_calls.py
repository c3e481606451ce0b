"""Processes that kill themselves at one of their calls of the system. This file loads nothing of the package."""

import os
import signal
import sys

# Tests that play another system remove these later.
_kill, _KILL = os.kill, signal.SIGKILL


def kill_at_call(number, text):
    """Kill this process at the call with this number that has `text` in an argument; 0 kills at none.

    Returns a function that tells the number of such calls so far.
    """
    calls = 0

    def count(event, arguments):
        nonlocal calls
        if any(isinstance(argument, str | bytes) and text in os.fsdecode(argument) for argument in arguments):
            calls += 1
            if calls == number:
                _kill(os.getpid(), _KILL)

    sys.addaudithook(count)
    return lambda: calls
