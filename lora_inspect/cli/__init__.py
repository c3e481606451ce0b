"""The command line: its entry, and its exit statuses."""

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.terminal import failure, show_defect
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.system import ENDING_SIGNALS, wake_thread
from lora_inspect.interrupt import INTERRUPTED, RECORD, WORDS
from lora_inspect.torchrun import launched

if TYPE_CHECKING:
    from lora_inspect.cli.info.one_file import PlainCommand

# As click has it, which sees it first in all that it runs.
_READER_LEFT = 1
# The verb that a file without any verb means.
_INFO = "info"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 refused, 2 wrong usage, 3 it could not work, 130 interrupted."""
    rank = launched()
    if rank and not rank.is_first:  # which speaks for all
        sys.stdout = sys.stderr = None
    terminal.serve_any_encoding()
    set_complete_outputs([])
    with RECORD.command(wake_thread):
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup goes on
                signal.signal(number, RECORD.unwind)
        _run_and_exit(arguments)


def _run_and_exit(arguments: list[str] | None) -> None:
    try:
        status = _run(arguments)
        sys.exit(status if isinstance(status, int) else 0)
    except KeyboardInterrupt:
        _fail(WORDS, INTERRUPTED)
    except BrokenPipeError:
        if sys.stderr:
            sys.stderr.close()  # whoever read the output has left, and Python would complain about it once more
        sys.exit(_READER_LEFT)
    except Exception as error:  # the last place that sees it: no user gets a traceback
        show_defect(error)
        ended = failure(_path_of(error), error)
        if _is_json(sys.argv[1:] if arguments is None else arguments):
            terminal.json_failure(ended)
        _fail(ended.says, ended.status)


def plain_command(words: Sequence[str]) -> "PlainCommand | None":
    """Return the command if it runs without click, or None.

    The import of click takes as long as such a command.
    """
    if not words or (words[0] != _INFO and "." not in words[0]):
        return None
    from lora_inspect.cli.info.one_file import read_plain

    return read_plain(words[1:] if words[0] == _INFO else words)


def _run(arguments: list[str] | None) -> object:
    """Run the verb; a signal that came decides how it ends, even if Python or a library dropped its exception."""
    try:
        status = _run_verb(arguments)
    except (Exception, SystemExit):
        RECORD.raise_again()
        raise
    RECORD.raise_again()
    return status


def _run_verb(arguments: list[str] | None) -> object:
    """Run the verb.

    Parts of an address that may be secret are removed before any message.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if plain := plain_command(given):
        plain.run()
        return None
    from lora_inspect.cli.group import run

    if not any("://" in argument for argument in given):
        return run(arguments)
    from lora_inspect.cli.progress_bar import waiting_line
    from lora_inspect.reading.model.settings import without_secrets

    with waiting_line():
        return run(list(map(without_secrets, given)))


def _is_json(arguments: list[str]) -> bool:
    """Return True if the command asks for JSON, as far as its words show without the verb's options."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    named = before[before.index("--format") + 1 :][:1] if "--format" in before else []
    return "--json" in before or "--format=json" in before or named == ["json"]


def _path_of(error: Exception) -> str | None:
    named = error.path if isinstance(error, LoraInspectError) else getattr(error, "filename", None)
    return named if isinstance(named, str) and named else None


def _fail(message: str, status: int) -> None:
    terminal.error(message)
    sys.exit(status)
