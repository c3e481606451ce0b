"""Kills `check --fix` at each of its calls of the system that concern the output's folder.

    python killed_fixes.py FOLDER FILE

Prints a JSON list: for each moment what is under the output's name ("none", "new" or "other"), the endings of the names
beside it, and both again after the next run.
"""

import contextlib
import io
import json
import os
import signal
import sys

from killed_calls import kill_at_call

OUT = "out.safetensors"


def fix(place, file):
    """Run the command line and return its status."""
    from lora_inspect.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(["check", file, "--fix", "-o", os.path.join(place, OUT), "--force"])
        except SystemExit as ended:
            return ended.code


def is_killed(moment, place, file):
    """Return True if the process was killed at the call with this number; False if it ended before."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        return status != 0
    kill_at_call(moment, place)
    status = 1
    try:
        status = fix(place, file)
    finally:
        os._exit(status)


def main(place, file):
    os.fsync = lambda descriptor: None  # the death of a process takes nothing from the disk, and waiting takes long
    output = os.path.join(place, OUT)
    assert fix(place, file) == 0
    with open(output, "rb") as handle:
        new = handle.read()

    def state():
        shown = "none"
        if os.path.exists(output):
            with open(output, "rb") as handle:
                shown = "new" if handle.read() == new else "other"
        return shown, sorted("." + name.split(".", 3)[3] for name in os.listdir(place) if name != OUT)

    found, moment = [], 1
    os.unlink(output)
    while is_killed(moment, place, file):
        left = state()
        assert fix(place, file) == 0
        found.append([*left, *state()])
        os.unlink(output)
        moment += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
