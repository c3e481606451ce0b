"""How a path is taken from the command line: completed by the shell as a file, and judged by what opens it."""

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class FilePath(click.ParamType):  # type: ignore[type-arg]  # generic in later versions of click alone
    """The path of a file or a folder as it was typed, settings and all."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as it is: what is wrong with one is said where it is opened."""
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """What the shell itself knows of files."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]
