"""The process of the command line, from its first moment to its last.

Ctrl-C ends it at any time with a sentence. This module imports nothing that takes time, so little happens before its
first moment.
"""

import atexit
import gc
import os
import signal
import sys

from lora_inspect.interrupt import Interrupt

_STANDARD_STREAMS = (0, 1, 2)
# As `FAILED_STATUS` of lora_inspect.errors, which may be what cannot be loaded.
_COULD_NOT_WORK = 3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> None:
    """Run the command line of this process and end it.

    This is the entry of `lora-inspect` and of `python -m lora_inspect`. `lora_inspect.cli.main` does the same for a
    process that goes on.
    """
    interrupt = Interrupt()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a command in the background ignores it
        signal.signal(signal.SIGINT, interrupt)
    _open_streams()
    gc.disable()  # what is loaded stays, and looking for garbage among it takes longer than loading some of it
    try:
        from lora_inspect.cli import main as run
        from lora_inspect.cli import plain_command
        from lora_inspect.files.system import ENDING_SIGNALS

        is_plain = plain_command(sys.argv[1:]) is not None
        if not is_plain:
            import lora_inspect.cli.group  # noqa: F401 (it loads click)
    except ImportError as error:  # without click there is no other way to tell
        _fail(f"a library that lora-inspect needs cannot be loaded ({error}); install it again.")
    except OSError as error:
        _fail(f"a part of lora-inspect cannot be loaded ({error.strerror}); check its installation and limits.")
    except MemoryError:
        _fail("there is not enough memory; close other programs, or use a machine that has more.")

    gc.freeze()
    if not is_plain:
        gc.enable()
    try:
        interrupt.may_unwind = True
        run()
    except KeyboardInterrupt:  # while an error was told
        interrupt.end()
    except SystemExit as ended:
        interrupt.is_over = True
        _end_at_once(ended.code)
        raise
    finally:
        interrupt.is_over = True
        gc.freeze()  # all ends with the process, and its last look for garbage takes longer than many a command
        for number in (signal.SIGINT, *ENDING_SIGNALS):
            signal.signal(number, signal.SIG_IGN)  # of all settings the one that Python's own end leaves alone


def _fail(says: str) -> "NoReturn":
    os.write(2, f"Error: {says}\n".encode(errors="backslashreplace"))
    sys.exit(_COULD_NOT_WORK)


def _end_at_once(status: object) -> None:
    """End the process without taking its modules apart, which takes longer than many a command.

    Returns if something is left for Python's own end: threads, work of libraries at exit, or output that cannot be
    written; Python reports the last.
    """
    is_watched = sys.gettrace() or sys.getprofile() or sys.flags.interactive
    if is_watched or not isinstance(status, int) or _is_anything_left():
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
    except (OSError, ValueError):
        return
    os._exit(status)


def _is_anything_left() -> bool:
    """Return True if there are threads, or functions for Python's end, or if that is unknown."""
    threads = sys.modules.get("threading")
    count_calls = getattr(atexit, "_ncallbacks", None)
    return (threads is not None and threads.active_count() > 1) or count_calls is None or count_calls() > 0


def _open_streams() -> None:
    """Open closed standard streams on nothing, so that libraries do not write into an output with such a number."""
    for number in _STANDARD_STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
