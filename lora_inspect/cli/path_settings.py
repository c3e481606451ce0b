"""The settings on a path, for a verb that applies no adapter."""

import click

from lora_inspect.reading.settings import Settings, bare_number, parse_argument


def parse_without_strength(argument: str, verb: str) -> tuple[str, Settings]:
    """The path and the settings of an argument to a verb that applies nothing, for which a multiplier means nothing."""
    path, own = parse_argument(argument)
    if own.has_strength or bare_number(argument) is not None:
        raise click.UsageError(f"{argument}: {verb} applies no adapter, so a multiplier means nothing; leave it out.")
    return path, own
