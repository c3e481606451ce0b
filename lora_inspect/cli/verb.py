"""The parts of a command: the verbs with a summary of each, their class, and the options and arguments that they share.

The options for help and version are made without a search for translations, for which click loads `locale`. The other
options are made from a verb's record. A path on the command line completes as a file in the shell; the code that opens
it judges it.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora_inspect.sentences import listed
from lora_inspect.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from click.shell_completion import CompletionItem

    from lora_inspect.option import Declared, Option
    from lora_inspect.reading.model.settings import Settings

VERBS = {
    "info": "Report the kind and meaning of a file, with the evidence.",
    "check": "Report problems of files, and fix them.",
    "merge": "Fold adapters into a base.",
    "unmerge": "Remove the adapters of the last merge from a model.",
    "verify": "Prove how much of each adapter a merged model carries.",
    "convert": "Rewrite an adapter so that every loader applies the same scale.",
    "combine": "Write the sum of adapters as one adapter.",
    "resize": "Give an adapter another rank.",
    "extract": "Write the difference of two models as an adapter.",
    "average": "Write the average of adapters, such as the epochs of a training.",
    "compare": "Report how far adapters are from each other.",
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


class FilePath(click.ParamType):  # type: ignore[type-arg]  # generic in later versions of click alone
    """The path of a file or a folder as the user typed it, with its settings."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path unchanged; the code that opens it judges it."""
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Complete as the shell completes files."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


Decorated = TypeVar("Decorated", bound=Callable[..., Any])


# The files in a program that make the exit status 1; each counts those that the one before it does.
FAILURES = ON_WRONG, ON_UNTESTED = "wrong", "untested"


def declared_options(
    record: "type[DataclassInstance]", names: Collection[str] = (), but: Collection[str] = ()
) -> Callable[[Decorated], Decorated]:
    """The options that a verb's record declares, in its order: those of the `names`, or all `but` some."""

    def decorate(function: Decorated) -> Decorated:
        from lora_inspect.option import declared  # `info` has no record, and starts without what makes one

        for one in reversed(declared(record).values()):
            if one.name in names if names else one.name not in but:
                function = click.option(one.flag, one.name, help=one.option.says, **_as_click(one))(function)
        return function

    return decorate


def _as_click(one: "Declared") -> Mapping[str, Any]:
    """The rest of what click needs, by the kind of the value."""
    from lora_inspect import option

    asked = one.option
    if asked.kind == option.FLAG:
        return {"is_flag": True, **({"callback": _inverted} if one.default is True else {})}
    if asked.kind == option.CHOICE:
        chosen = {"type": NearChoice(asked.chosen_from, asked.titles and asked.titles()), "metavar": asked.metavar}
        return chosen if one.default is None else {**chosen, "default": one.default, "show_default": True}
    if asked.kind == option.DTYPE:
        return {"type": click.Choice(list(asked.chosen_from)), "callback": _dtype}
    if asked.kind == option.YES_NO:
        return {"type": click.Choice(["yes", "no"]), "callback": _yes}
    if asked.kind == option.PATH:
        return {"type": FilePath(), "metavar": asked.metavar}
    if asked.kind == option.WHOLE:
        return {"type": int if asked.least is None else click.IntRange(min=asked.least), "metavar": asked.metavar}
    if asked.kind == option.NUMBER:
        kind = click.FloatRange(0, 1, max_open=True) if asked.share else float
        return {"type": kind, "metavar": asked.metavar, "callback": _right(asked, _finite)}
    if asked.kind == option.TEXT:
        return {"metavar": asked.metavar, "callback": _right(asked, _text)}
    if asked.kind == option.ANSWERS:
        return {"multiple": True, "metavar": asked.metavar, "callback": _answers}
    return {"multiple": asked.kind == option.NAMES, "metavar": asked.metavar}


class NearChoice(click.Choice[str]):
    """One of several names, which may be given in another spelling where they have titles."""

    def __init__(self, names: Collection[str], titles: Mapping[str, str] | None = None) -> None:
        super().__init__(list(names))
        self._titles = titles

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The name that is meant; a usage error that names the nearest one if there is none."""
        if self._titles is None:
            return super().convert(value, parameter, context)
        from lora_inspect.near_names import meant, suggestion

        found = meant(str(value), self.choices, self._titles)
        if found is None:
            way_out = suggestion(str(value), self.choices) or f"; choose from {listed(self.choices)}."
            self.fail(f"{value!r} is no known name{way_out}", parameter, context)
        return found


def _right(asked: "Option", check: Callable[..., Any]) -> Callable[..., Any]:
    """A callback that refuses what `check` refuses, with the sentence of the option."""

    def right(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        value = check(context, parameter, value)
        if value is not None and (wrong := asked.wrong(value)):
            raise click.BadParameter(f"{value if isinstance(value, str) else f'{value:g}'} {wrong}.")
        return value

    return right


def _finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuses the infinities and NaN, which click takes for numbers."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def _text(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses bytes that are no text, which Python passes on as halves of surrogate pairs and no file can hold."""
    from lora_inspect.files.strict_json import is_unicode

    if value is not None and not is_unicode(value):
        raise click.BadParameter("it is no text in UTF-8.")
    return value


def _inverted(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    return not value


def _yes(context: click.Context, parameter: click.Parameter, value: str | None) -> bool | None:
    return None if value is None else value == "yes"


def _dtype(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from lora_inspect.files.safetensors.dtypes import DTYPE_NAMES

    return None if value is None else DTYPE_NAMES[value]


def _answers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Mapping[str, bool]:
    from lora_inspect.matching.orientation import parse_answers

    try:
        return parse_answers(values)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


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
            help="Output: a name that ends in .safetensors, or a folder.",
        )(function)

    return decorate


def parse_without_multiplier(argument: str, verb: str) -> "tuple[str, Settings]":
    """The path and the settings of an argument to a verb that applies nothing, for which a multiplier means nothing."""
    from lora_inspect.reading.model.settings import bare_number, parse_argument

    path, own = parse_argument(argument)
    if own.step is not None:
        raise click.UsageError(f"{argument}: only average uses a step; leave it out.")
    if own.has_multiplier or bare_number(argument) is not None:
        raise click.UsageError(f"{argument}: {verb} applies no adapter, so a multiplier has no meaning; leave it out.")
    return path, own
