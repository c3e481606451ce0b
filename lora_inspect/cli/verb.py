"""What click has ready for every command, made without a look for translations, for which it loads `locale`.

The verbs in the order in which people meet them, and what each does: the help lists them without loading any.
"""

from collections.abc import Callable
from functools import cache

import click

from lora_inspect.version import __version__


@cache
def help_option() -> click.Option:
    """-h and --help."""
    return _telling(["-h", "--help"], "Show this message and exit.", lambda context: context.get_help())


def version_option() -> click.Option:
    """--version, of the program itself."""
    return _telling(["--version"], "Show the version and exit.", lambda context: f"lora-inspect, version {__version__}")


def _telling(flags: list[str], says: str, text: Callable[[click.Context], str]) -> click.Option:
    """An option that has a text printed instead of what the command does."""

    def tell(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
        if is_asked and not context.resilient_parsing:
            click.echo(text(context), color=context.color)
            context.exit()

    return click.Option(flags, is_flag=True, expose_value=False, is_eager=True, help=says, callback=tell)


class Verb(click.Command):
    """A command with that option for help."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The one of all commands."""
        return help_option()


VERBS = {
    "info": "What a file is and means, and on which evidence.",
    "check": "What is wrong or doubtful with files, and what can be mended.",
    "merge": "Fold adapters into a base.",
    "unmerge": "Take the adapters of the last merge out of a model again.",
    "verify": "Prove how much of each adapter a merged model carries.",
    "convert": "Rewrite an adapter so that every loader applies the same scale.",
    "metadata": "Show and change what a file says of itself; the tensors stay as they are.",
    "compat": "What each program that loads adapters makes of one.",
}

METADATA_VERBS = {
    "show": "List what a file says of itself.",
    "get": "Print one value as it is.",
    "set": "Give keys values.",
    "unset": "Remove keys.",
    "copy": "Take over the metadata of another file.",
    "strip": "Remove all that does not decide how the file is read.",
}
