"""Commands with click's own options, and the verbs in the order of the help with a summary of each.

The options are made without a search for translations, for which click loads `locale`. The help lists the verbs without
loading any.
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
    """Make an option that prints a text instead of running the command."""

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
    "info": "Report the kind and meaning of a file, with the evidence.",
    "check": "Report problems of files, and fix them.",
    "merge": "Fold adapters into a base.",
    "unmerge": "Remove the adapters of the last merge from a model.",
    "verify": "Prove how much of each adapter a merged model carries.",
    "convert": "Rewrite an adapter so that every loader applies the same scale.",
    "metadata": "Show and edit the metadata of a file; the tensors stay the same.",
    "compat": "Report how each program that loads adapters applies one.",
}

METADATA_VERBS = {
    "show": "List the metadata of a file.",
    "get": "Print one value exactly.",
    "set": "Set keys to values.",
    "unset": "Remove keys.",
    "copy": "Copy the metadata of another file.",
    "strip": "Remove the metadata, except keys that decide how the file is read.",
}
