"""The group of verbs: it finds the verb of a command line, and takes `info` for a line that begins with a file."""

import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.verb import VERBS, Verb, version_option
from lora_inspect.files.system import without_collecting
from lora_inspect.sentences import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# The verb that a file without any verb means.
_OF_FILES = "info"
# Verbs whose files have a folder of their own.
_OF_ALGEBRA = ("combine", "resize", "extract", "average", "compare")
# What paths have and verbs have not.
_IN_PATHS = "./\\:"


class Verbs(Verb, click.Group):
    """The group that finds each verb in the file of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which people need them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one verb's file, and return the command."""
        if name not in VERBS:
            return None
        with without_collecting():
            if name == _OF_FILES:
                file = importlib.import_module("lora_inspect.cli.info.command")
            elif name in _OF_ALGEBRA:
                file = importlib.import_module(f"lora_inspect.cli.algebra.{name}")
            else:
                file = importlib.import_module(f"lora_inspect.cli.{name}")
        command: click.Command = getattr(file, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs as click does."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, except that options of `info` may precede a file."""
        return super().parse_args(ctx, [_OF_FILES, *args] if self._begins_with_options_of_info(ctx, args) else args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb and its arguments.

        A first word that is a path, or looks like one, is an argument of `info`.
        """
        word = args[0]
        if word in VERBS:
            return super().resolve_command(ctx, args)
        if not (ctx.resilient_parsing or any(mark in word for mark in _IN_PATHS) or os.path.lexists(word)):
            raise click.UsageError(_no_verb(word), ctx)
        behind = ["--", *args] if word.startswith("-") else args  # the parser has taken the user's own --
        return _OF_FILES, self.get_command(ctx, _OF_FILES), behind

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete verbs, and the files that may replace them.

        Files come first: bash forgets all items before them.
        """
        from click.shell_completion import CompletionItem

        files = [] if incomplete.startswith("-") else [CompletionItem(incomplete, type="file")]
        verbs = [CompletionItem(verb, help=says) for verb, says in VERBS.items() if verb.startswith(incomplete)]
        # That of a group would import every verb for what is said of it.
        return [*files, *verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def _begins_with_options_of_info(self, ctx: click.Context, args: list[str]) -> bool:
        verb = next((word for word in args if not word.startswith("-")), None)
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if not args or not args[0].startswith("-") or args[0] in own or verb in VERBS:
            return False
        command = self.get_command(ctx, _OF_FILES)
        return command is not None and any(args[0] in parameter.opts for parameter in command.params)


def _no_verb(word: str) -> str:
    from lora_inspect.files.discovery import nearest_path
    from lora_inspect.near_names import nearest_name
    from lora_inspect.sentences import listed

    if verb := nearest_name(word, VERBS):
        return f"There is no command '{word}'; did you mean {verb}?"
    if path := nearest_path(word):
        return f"There is no command or file '{word}'; did you mean {path}?"
    return f"There is no command or file '{word}'; the commands are {listed(list(VERBS), 'and')}."


# No docstring: python -OO leaves those out.
_HELP = """\
Report the meaning of a LoRA file with its evidence, merge it into a base, and convert it.

A file without a command goes to `info`.

\b
lora-inspect info adapter.safetensors
lora-inspect merge base.safetensors adapter.safetensors:0.8 \\
  -o merged.safetensors
lora-inspect convert adapter.safetensors --to-standard -o standard.safetensors
"""


@click.group(help=_HELP, cls=Verbs, params=[version_option()])
def cli() -> None:
    """Group the verbs."""


def run(arguments: list[str] | None) -> object:
    """Run a verb with click and return its result; exit with 2 for a wrong command line."""
    try:
        return cli.main(arguments, prog_name="lora-inspect", standalone_mode=False)
    except click.ClickException as error:
        _show_wrong_usage(error)
        sys.exit(error.exit_code)
    except click.Abort:
        raise KeyboardInterrupt from None


def _show_wrong_usage(wrong: click.ClickException) -> None:
    """Print an error of the command line in click's words.

    They repeat arguments, which may hold anything.
    """
    if isinstance(wrong, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        terminal.usage(wrong.format_message())  # the help alone
        return
    if isinstance(wrong, click.UsageError) and wrong.ctx:
        hint = f"Try '{printable(wrong.ctx.command_path)} --help' for help."
        terminal.usage(f"{wrong.ctx.get_usage()}\n{hint}\n")
    terminal.error(wrong.format_message())
