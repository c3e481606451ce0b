"""Options that several verbs share: what settles an unknown scale, and where the output goes."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from lora_inspect.settings import Settings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuses the infinities and NaN, which click takes for numbers."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def reading_options(function: Decorated) -> Decorated:
    """--rslora, --alpha and --allow-partial-dora, which become `Settings`."""
    for option in (
        click.option(
            "--allow-partial-dora", is_flag=True, help="Accept magnitudes on a part of the Linear modules only."
        ),
        click.option(
            "--alpha",
            type=float,
            callback=finite,
            metavar="N",
            help="Alpha of the modules whose alpha is unknown.",
        ),
        click.option("--rslora", type=click.Choice(["yes", "no"]), help="Whether the scale is alpha/sqrt(rank)."),
    ):
        function = option(function)
    return function


def writing_options(function: Decorated) -> Decorated:
    """-o and --force."""
    for option in (
        click.option("--force", is_flag=True, help="Overwrite the output if it exists; never an input."),
        click.option("-o", "--output", required=True, metavar="OUT", help="Where to write."),
    ):
        function = option(function)
    return function


def settings(rslora: str | None, alpha: float | None, allow_partial_dora: bool) -> Settings:
    """What the reading options amount to."""
    return Settings(None if rslora is None else rslora == "yes", alpha, allow_partial_dora)
