"""Options that several verbs share: what settles an unknown scale, and where the output goes.

How a path is taken from the command line: completed by the shell as a file, and judged by what opens it.

The settings on a path, for a verb that applies no adapter.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora_inspect.maths.dora import MULTIPLIER_RULES
from lora_inspect.maths.scaling import PACKINGS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from lora_inspect.matching.orientation import Answers
    from lora_inspect.merging.shard_assignment import Share
    from lora_inspect.reading.model.settings import Settings


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


Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuses the infinities and NaN, which click takes for numbers."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def reading_options(function: Decorated) -> Decorated:
    """--rslora, --alpha, --expert-packing and --allow-partial-dora, which become `Settings`."""
    for option in (
        click.option(
            "--expert-packing",
            type=click.Choice(PACKINGS),
            help="How the factors of all experts of a layer lie in lora_B, where the file does not say.",
        ),
        click.option(
            "--allow-partial-dora", is_flag=True, help="Accept magnitudes on a part of the Linear modules only."
        ),
        click.option(
            "--alpha",
            type=float,
            callback=finite,
            metavar="N",
            help="Alpha of the modules whose alpha is unknown, of the one adapter that has such.",
        ),
        click.option(
            "--rslora",
            type=click.Choice(["yes", "no"]),
            help="Whether the scale is alpha/sqrt(rank), where the file does not say.",
        ),
    ):
        function = option(function)
    return function


def architecture_option(of: str) -> Callable[[Decorated], Decorated]:
    """--architecture, the name of a family or None; `of` says in its help what it is that is of one."""
    return click.option(
        "--architecture",
        metavar="NAME",
        help=f"Of which model family {of}, where names may be of several: flux, chroma, ….",
    )


def dora_multiplier_option(function: Decorated) -> Decorated:
    """--dora-multiplier, the name of a rule or None."""
    return click.option(
        "--dora-multiplier",
        type=click.Choice(MULTIPLIER_RULES),
        help="What a multiplier does to DoRA; by default what the file's own program does.",
    )(function)


def transposed_option(of: str) -> Callable[[Decorated], Decorated]:
    """--transposed, whose value is a mapping of globs to answers; `of` says in its help whose weights it means."""

    def parse(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> "Answers":
        from lora_inspect.matching.orientation import parse_answers

        try:
            return parse_answers(values)
        except ValueError as error:
            raise click.BadParameter(f"{error}.") from None

    return click.option(
        "--transposed",
        multiple=True,
        callback=parse,
        metavar="[GLOB=]yes|no",
        help=f"Whether {of} square weights as (in, out), where nothing else says it; of all, or of those that a glob "
        "fits; may be repeated.",
    )


def share_of(context: click.Context, parameter: click.Parameter, value: str | None) -> "Share | None":
    """What I/N says: one of the shares 1/N to N/N."""
    if value is None:
        return None
    from lora_inspect.merging.shard_assignment import Share

    try:
        return Share.parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def choosing_options(verb: str) -> Callable[[Decorated], Decorated]:
    """--include, --exclude and --weights of a verb that applies adapters."""

    def decorate(function: Decorated) -> Decorated:
        for option in (
            click.option(
                "--weights",
                type=FilePath(),
                metavar="FILE.toml",
                help="Multipliers of adapters, their components and blocks, a table for each.",
            ),
            click.option(
                "--exclude",
                multiple=True,
                metavar="GLOB",
                help="Leave out the modules that it fits: a path, a block, blocks.0-9, a glob; may be repeated.",
            ),
            click.option(
                "--include",
                multiple=True,
                metavar="GLOB",
                help=f"{verb} the modules alone that it fits; may be repeated.",
            ),
        ):
            function = option(function)
        return function

    return decorate


def writing_options(dry_run: bool = False) -> Callable[[Decorated], Decorated]:
    """-o and --force; of a verb that has a --dry-run, which is eager, that one needs no -o."""

    def needed(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is None and not context.params["dry_run"]:
            raise click.MissingParameter(ctx=context, param=parameter)
        return value

    def decorate(function: Decorated) -> Decorated:
        function = click.option("--force", is_flag=True, help="Overwrite the output if it exists; never an input.")(
            function
        )
        return click.option(
            "-o",
            "--output",
            required=not dry_run,
            callback=needed if dry_run else None,
            type=FilePath(),
            metavar="OUT",
            help="Where to write: a name that ends in .safetensors, or a folder.",
        )(function)

    return decorate


def settings(
    rslora: str | None,
    alpha: float | None,
    allow_partial_dora: bool,
    expert_packing: str | None,
    architecture: str | None = None,
) -> "Settings":
    """What the reading options amount to, and --architecture."""
    from lora_inspect.reading.model.settings import Settings

    return Settings(
        rslora=None if rslora is None else rslora == "yes",
        alpha=alpha,
        allow_partial_dora=allow_partial_dora,
        expert_packing=expert_packing,
        architecture=architecture,
    )


def parse_without_multiplier(argument: str, verb: str) -> "tuple[str, Settings]":
    """The path and the settings of an argument to a verb that applies nothing, for which a multiplier means nothing."""
    from lora_inspect.reading.model.settings import bare_number, parse_argument

    path, own = parse_argument(argument)
    if own.has_multiplier or bare_number(argument) is not None:
        raise click.UsageError(f"{argument}: {verb} applies no adapter, so a multiplier means nothing; leave it out.")
    return path, own
