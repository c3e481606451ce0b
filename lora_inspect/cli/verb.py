"""The parts of a command: the verbs with their summaries, their class, their help page, and shared options.

A help page has options in groups, the exit statuses and the page of the docs; GROUPS and ENDS are the tables for that.

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
from lora_inspect.version import described

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from click.shell_completion import CompletionItem

    from lora_inspect.option import Declared, Option
    from lora_inspect.reading.model.settings import Settings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

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
    "report": "Write a page with pictures of adapters, to read in a browser.",
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

# The groups of a help page, and the options in each, whichever command has them.
GROUPS = {
    "Common": (
        *(
            "modules",
            "metadata",
            "why",
            "norms",
            "spectrum",
            "tensors",
            "fix",
            "fail-on",
            "for",
            "base",
            "to-standard",
            "to",
            "layout",
        ),
        *("algorithm", "keep-dora", "drop-magnitude", "rank", "energy", "max-error", "size", "max-rank", "weights"),
        *("uniform", "beta", "sigma-rel", "of", "exact", "max-difference", "trigger-words", "title", "author"),
        *("method", "density", "t", "lambda", "calibrate", "clip-sigma"),
        *("description", "thumbnail", "from", "version", "help"),
    ),
    "Selection": ("only", "include", "exclude", "where", "all", "all-files", "weights-only"),
    "Facts that the file leaves open": (
        *("rslora", "alpha", "allow-partial-dora", "expert-packing", "architecture", "dora-multiplier", "transposed"),
        "model-config",
    ),
    "Output": (
        *("output", "force", "in-place", "dry-run", "dtype", "changed-dtype", "hashes", "sort", "format", "json"),
        *("jsonl", "verbose", "quiet"),
    ),
    "Rare": (
        *("allow-loss", "allow-growth", "allow-unmatched", "allow-unclaimed", "allow-ambiguous", "allow-mixed"),
        *("allow-meaning-change", "drop-biases", "no-verify", "strict", "rounding", "seed", "shard", "finish"),
        *("hash-base", "skip-hashes", "jobs", "timeout"),
    ),
}

# The words for values on a help page, and the kind of value that each stands for. Choices have their own words.
METAVARS = {
    "PATH": "a file or a folder",
    "FILE": "a file",
    "FOLDER": "a folder",
    "OUT": "the output: a file or a folder",
    "ADAPTER": "an adapter: a file or a folder",
    "BASE": "a model without adapters: a file or a folder",
    "MERGED": "a model with adapters: a file or a folder",
    "TUNED": "a model after its training: a file or a folder",
    "CONFIG": "a config.json, or its folder",
    "NAME": "one of several known names",
    "COMPONENT": "the name of a part of a model",
    "GLOB": "a pattern of names",
    "KEY": "a key of the metadata",
    "TEXT": "any text",
    "SIZE": "bytes, as 200MB",
    "N": "a number, such as a rank or alpha",
    "X": "a share, an error or another measured number",
    "SECONDS": "a time in seconds, such as 10 or 0.5",
    "I/N": "a part of several",
}

# Said by every command that has these options.
JSON_HELP = "Print the result as JSON."
FORCE_HELP = "Overwrite OUT if it exists; never an input."

# What ends each command: the page that explains it, and the reasons for status 1 other than a refusal.
ENDS = {
    "": ("cli", ""),
    "info": ("inspecting", "--fail-on found a file"),
    "check": ("checking", "a problem as serious as --fail-on"),
    "merge": ("merging", ""),
    "unmerge": ("unmerging", ""),
    "verify": ("verifying", "the shares are not those of the adapters"),
    "convert": ("converting", ""),
    "combine": ("combining", ""),
    "resize": ("resizing", ""),
    "extract": ("extracting", ""),
    "average": ("combining", ""),
    "compare": ("comparing", "a difference above --max-difference"),
    "report": ("reports", ""),
    "metadata": ("metadata", ""),
    "compat": ("compat", "wrong or without such models in the program of --for"),
}


@cache
def help_option() -> click.Option:
    """Return the option -h and --help."""
    return _telling(["-h", "--help"], "Show this message and exit.", lambda context: context.get_help())


def version_option() -> click.Option:
    """Return the option --version, for the program itself."""
    return _telling(["--version"], "Show the version and exit.", lambda context: described())


def _telling(flags: list[str], says: str, text: Callable[[click.Context], str]) -> click.Option:
    """Make an option that prints a text instead of running the command."""

    def tell(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
        if is_asked and not context.resilient_parsing:
            click.echo(text(context), color=context.color)
            context.exit()

    return click.Option(flags, is_flag=True, expose_value=False, is_eager=True, help=says, callback=tell)


def _timeout_option() -> click.Option:
    """Return the option --timeout, for every command that takes paths."""
    return click.Option(
        ["--timeout"],
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        callback=_finite,
        help="Give up a request to an address that is silent for so long.  [default: 60]",
    )


class Verb(click.Command):
    """A command with the shared help option, and a help page with groups.

    Each command that takes paths has --timeout, which counts while the command runs.
    """

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        if not isinstance(self, click.Group):
            self.params.append(_timeout_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with its timeout."""
        seconds = ctx.params.pop("timeout", None)
        if seconds is None:
            return super().invoke(ctx)
        from lora_inspect.stores.patience import timing_out

        with timing_out(seconds):
            return super().invoke(ctx)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return the help option of all commands."""
        return help_option()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options by group, in columns of one width, and the commands below a group of commands."""
        groups = grouped_options(self, ctx)
        widest = max(len(names) for records in groups.values() for names, _ in records)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl([(names.ljust(min(widest, _NAMES)), says) for names, says in records], _NAMES)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """End with the exit statuses and the page of the docs."""
        statuses, page = ending(ctx)
        with formatter.section("Exit status"):
            formatter.write_dl(statuses)
        formatter.write_paragraph()
        formatter.write(f"More: {page}\n")


# The columns for the names of options on a help page; longer names have a line of their own.
_NAMES = 30


def group_of(parameter: click.Option) -> str:
    """Return the title of an option's group; KeyError for an option that GROUPS lacks."""
    return _GROUP_OF[max(parameter.opts, key=len)]


_GROUP_OF = {f"--{name}": title for title, names in GROUPS.items() for name in names}


def grouped_options(command: click.Command, context: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return the names and help of a command's options by group; groups without any are left out."""
    groups: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS}
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            groups[group_of(parameter)].append(record)
    return {title: records for title, records in groups.items() if records}


def ending(context: click.Context) -> tuple[list[tuple[str, str]], str]:
    """Return the exit statuses of a command with the meaning of each, and the page of the docs about the command."""
    _, *words = context.command_path.split()
    page, answer = ENDS[words[0] if words else ""]
    statuses = [
        ("0", "Done."),
        ("1", f"Refused, or {answer}." if answer else "Refused, as the error says."),
        ("2", "Wrong usage, such as an unknown option."),
        ("3", "It could not work: a missing file, the disk, memory or the network."),
    ]
    return statuses, f"docs/{page}.md"


def json_option(name: str = "as_json") -> Callable[[Decorated], Decorated]:
    """Return the option --json, for every command with a result for scripts."""
    return click.option("--json", name, is_flag=True, help=JSON_HELP)


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


# The files in a program that make the exit status 1; each counts those that the one before it does.
FAILURES = ON_WRONG, ON_UNTESTED = "wrong", "untested"


def declared_options(
    record: "type[DataclassInstance]", names: Collection[str] = (), but: Collection[str] = ()
) -> Callable[[Decorated], Decorated]:
    """Return a decorator with the options of a verb's record, in its order.

    They are those in `names`, or all except those in `but`.
    """

    def decorate(function: Decorated) -> Decorated:
        from lora_inspect.option import declared  # `info` has no record, and starts without what makes one

        for one in reversed(declared(record).values()):
            if one.name in names if names else one.name not in but:
                function = click.option(one.flag, one.name, help=one.option.says, **_as_click(one))(function)
        return function

    return decorate


def _as_click(one: "Declared") -> Mapping[str, Any]:
    """Return the other arguments of click, by the kind of the value."""
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


if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # click 8.1 has one kind alone
    _Choice = click.Choice


class NearChoice(_Choice):
    """One of several names; with titles, another spelling is accepted."""

    def __init__(self, names: Collection[str], titles: Mapping[str, str] | None = None) -> None:
        super().__init__(list(names))
        self._titles = titles

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """Return the meant name.

        Raises a usage error with the nearest name if there is none.
        """
        if self._titles is None:
            return super().convert(value, parameter, context)
        from lora_inspect.near_names import meant, suggestion

        found = meant(str(value), self.choices, self._titles)
        if found is None:
            way_out = suggestion(str(value), self.choices) or f"; choose from {listed(self.choices)}."
            self.fail(f"{value!r} is no known name{way_out}", parameter, context)
        return found


def _right(asked: "Option", check: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callback that refuses the same values as `check`, with the sentence of the option."""

    def right(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        value = check(context, parameter, value)
        if value is not None and (wrong := asked.wrong(value)):
            raise click.BadParameter(f"{value if isinstance(value, str) else f'{value:g}'} {wrong}.")
        return value

    return right


def _finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse the infinities and NaN, which click takes for numbers."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def _text(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse bytes that are no text.

    Python passes them on as halves of surrogate pairs, which no file can hold.
    """
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
    """Return a decorator with -o and --force.

    For a verb with --dry-run, which is eager, a dry run needs no -o.
    """

    def needed(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is None and not context.params["dry_run"]:
            raise click.MissingParameter(ctx=context, param=parameter)
        return value

    def decorate(function: Decorated) -> Decorated:
        function = click.option("--force", is_flag=True, help=FORCE_HELP)(function)
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
    """Return path and settings of an argument to a verb that applies nothing.

    Raises a usage error for a multiplier, which has no meaning there, and for a step.
    """
    from lora_inspect.reading.model.settings import bare_number, parse_argument

    path, own = parse_argument(argument)
    if own.step is not None:
        raise click.UsageError(f"{argument}: only average uses a step; leave it out.")
    if own.has_multiplier or bare_number(argument) is not None:
        raise click.UsageError(f"{argument}: {verb} applies no adapter, so a multiplier has no meaning; leave it out.")
    return path, own
