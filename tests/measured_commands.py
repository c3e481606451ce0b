"""Commands, each in a process of its own that measures what it takes. Linux only.

One process imports what they need and forks the others, so that a command takes milliseconds and its peak of memory
begins at that of an import alone.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_SECONDS = 60

_SERVER = f"""
import importlib, json, os, signal, sys, tempfile
for module in sys.argv[1:]:
    importlib.import_module(module)
from lora_inspect.cli import convert, info, main, merge
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            signal.alarm({LONGEST_SECONDS})
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            try:
                main(json.loads(line))
            except SystemExit as ended:
                code = ended.code or 0
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        _, status, usage = os.wait4(pid, 0)
        texts = [(f.seek(0), f.read().decode())[1] for f in (out, err)]
    seconds = usage.ru_utime + usage.ru_stime
    print(json.dumps([os.waitstatus_to_exitcode(status), *texts, seconds, usage.ru_maxrss]), flush=True)
"""


@dataclass(frozen=True)
class Measured:
    """How a command ended (a negative status is a signal), what it printed, its CPU seconds and its peak in kB."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    peak: int


class MeasuredCommands:
    """`MeasuredCommands(*modules)("info", path)`, the modules imported before; a context manager.

    `least` is for what is measured once, to compare the others with.
    """

    def __init__(self, *modules):
        self._modules = modules
        self.least = {}

    def __enter__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *self._modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
        )
        return self

    def __exit__(self, *error):
        self._server.communicate()

    def __call__(self, *arguments):
        self._server.stdin.write(json.dumps([os.fspath(argument) for argument in arguments]) + "\n")
        self._server.stdin.flush()
        return Measured(*json.loads(self._server.stdout.readline()))
