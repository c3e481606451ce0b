"""How a path is taken from the command line: completed by the shell as a file, and judged by what opens it."""

from typing import Any

import click


class FilePath(click.Path):
    """The path of a file or a folder as it was typed, settings and all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as it is: what is wrong with one is said where it is opened."""
        return value
