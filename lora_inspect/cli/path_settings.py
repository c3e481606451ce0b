"""The settings on a path, for a verb that applies no adapter."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lora_inspect.reading.model.settings import Settings


def parse_without_strength(argument: str, verb: str) -> "tuple[str, Settings]":
    """The path and the settings of an argument to a verb that applies nothing, for which a multiplier means nothing."""
    from lora_inspect.reading.model.settings import bare_number, parse_argument

    path, own = parse_argument(argument)
    if own.has_strength or bare_number(argument) is not None:
        raise click.UsageError(f"{argument}: {verb} applies no adapter, so a multiplier means nothing; leave it out.")
    return path, own
