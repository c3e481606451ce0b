"""The command line: a group whose verbs are imported when they are called for."""

import gc
import importlib
import signal
import sys
from types import FrameType

import click

from lora_inspect import __version__
from lora_inspect.cli import terminal
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.system import ENDING_SIGNALS

_VERBS = ("info", "merge", "convert")
_INTERRUPTED = 130
_KILLED_BY = 128


class Verbs(click.Group):
    """Finds each verb in the file of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order in which people meet them."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Imports one verb's file."""
        if name not in _VERBS:
            return None
        # What an import makes stays: looking for garbage in it is a tenth of the time that `info` takes.
        collects = gc.isenabled()
        gc.disable()
        try:
            command: click.Command = getattr(importlib.import_module(f"lora_inspect.cli.{name}"), name)
        finally:
            if collects:
                gc.enable()
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lora-inspect")
def cli() -> None:
    """Says what a LoRA file means and on which evidence, merges it into a base, and converts it.

    \b
    lora-inspect info adapter.safetensors
    lora-inspect merge base.safetensors adapter.safetensors:0.8 -o merged.safetensors
    lora-inspect convert adapter.safetensors --to-standard -o standard.safetensors
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 refused, 2 wrong usage, 130 interrupted."""
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup goes on
            signal.signal(number, _terminate)
    terminal.serve_any_encoding()
    try:
        status = cli.main(arguments, prog_name="lora-inspect", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except LoraInspectError as error:
        _fail(str(error), 1)
    except click.ClickException as error:
        terminal.wrong_usage(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; nothing was written.", _INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has left, and Python would complain about it once more
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}; check the path and its rights.", 1)


def _fail(message: str, status: int) -> None:
    terminal.error(message)
    sys.exit(status)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(_KILLED_BY + number)  # unwinds, so that half-written outputs are removed
