"""What click has ready for every command, made without a look for translations, for which it loads `locale`."""

from functools import cache

import click

from lora_inspect import __version__


@cache
def help_option() -> click.Option:
    """-h and --help."""

    def show(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
        if is_asked and not context.resilient_parsing:
            click.echo(context.get_help(), color=context.color)
            context.exit()

    return click.Option(
        ["-h", "--help"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        help="Show this message and exit.",
        callback=show,
    )


def version_option() -> click.Option:
    """--version, of the program itself."""

    def show(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
        if is_asked and not context.resilient_parsing:
            click.echo(f"lora-inspect, version {__version__}", color=context.color)
            context.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        help="Show the version and exit.",
        callback=show,
    )


class Verb(click.Command):
    """A command with that option for help."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The one of all commands."""
        return help_option()
