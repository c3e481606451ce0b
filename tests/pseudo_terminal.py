"""Commands on a terminal of their own, and the bytes that reach it."""

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
# One process for all commands: torch takes longer to import than all that the commands do.
RUN = """
import json, sys
from lora_inspect.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        print(f"== ended with {ended.code} ==")
"""


def on_a_terminal(commands, folder, **environment):
    """(status, bytes written to stdout and stderr) of each command; all three streams are the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps([list(map(os.fspath, words)) for words in commands])],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    os.close(theirs)
    guard = threading.Timer(120, process.kill)
    guard.start()
    try:
        written = b"".join(iter(lambda: _read(ours), b""))
        assert process.wait() == 0, written
    finally:
        guard.cancel()
        os.close(ours)
    parts = written.split(b"== ended with ")
    statuses = [part.split(b" ==\r\n", 1)[0].decode() for part in parts[1:]]
    outputs = [parts[0], *(part.split(b" ==\r\n", 1)[1] for part in parts[1:])]
    assert outputs.pop() == b""
    assert len(outputs) == len(commands), written
    return [(int(status) if status != "None" else 0, output) for status, output in zip(statuses, outputs, strict=True)]


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says so that nobody is at the other end
        return b""
