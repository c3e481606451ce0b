"""The arguments and options of `info`: one checkpoint, or the files of a folder with conditions and an order.

A condition tests a field of a file's account; `--sort` orders the files by a field.
"""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli.info.one_file import InfoArgument, broken, folder_argument
from lora_inspect.cli.verb import FAILURES, Decorated, FilePath, NearChoice, parse_without_multiplier
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import files_of_several
from lora_inspect.files.locations import pinned
from lora_inspect.near_names import meant
from lora_inspect.sentences import listed, scale_in_words

if TYPE_CHECKING:
    from lora_inspect.matching.orientation import Answers
    from lora_inspect.scanning.scan_file import ScannedFile


def _of_path(path: str) -> tuple[str, str]:
    """Return a path, and the name at its end."""
    return path, re.split(r"[\\/]", path)[-1]


# What a condition may be about: the words of a file under each key.
_WORDS: "dict[str, Callable[[ScannedFile], Iterable[str]]]" = {
    "name": lambda one: _of_path(one.path),
    "model": lambda one: (*one.architectures, *one.model.split(" or ")),
    "type": lambda one: one.types,
    "rank": lambda one: map(str, one.ranks),
    "scale": lambda one: map(scale_in_words, one.scales),
    "trainer": lambda one: (one.trainer or "unknown",),
    "trigger": lambda one: one.trigger_words,
    "scheme": lambda one: one.schemes,
    "kind": lambda one: (one.kind,),
    "state": lambda one: (one.state,),
    "problem": lambda one: one.codes,
    "note": lambda one: (one.note,),
    "duplicate": lambda one: _of_path(one.duplicate_of) if one.duplicate_of else (),
}
# Without a name in the place of one that is not known; what has several sorts by the first of them.
_ORDERS: "dict[str, Callable[[ScannedFile], Any]]" = {
    "name": lambda one: (one.path.lower(), one.path),
    "model": lambda one: (not one.model, one.model.lower()),
    "type": lambda one: (not one.types, one.types),
    "rank": lambda one: (not one.ranks, one.ranks),
    "scale": lambda one: [(scale is None, scale or 0.0) for scale in one.scales] or [(True, 1.0)],
    "size": lambda one: one.bytes,
    "modified": lambda one: one.modified,
}
# Every answer of a program that is wrong, whatever the program does.
_WRONG = "wrong"
KEYS, ORDERS = tuple(_WORDS), tuple(_ORDERS)


class Condition(NamedTuple):
    """The condition that a word under a key matches a pattern; case does not matter.

    A pattern without `*`, `?` and `[` matches words that begin with it; for numbers it matches the same number.
    """

    key: str
    pattern: str

    @property
    def program(self) -> str | None:
        """The program of the verdict; None for a condition on the file."""
        return None if self.key in _WORDS else self.key

    def holds(self, one: "ScannedFile") -> bool:
        """Return True for a file that matches."""
        if not self.program:
            return any(self._fits(word) for word in _WORDS[self.key](one))
        found = one.in_programs.get(self.program)
        if found is None:
            return False
        return any(self._fits(word) for word in (found.verdict, *found.notes, *((_WRONG,) if found.is_wrong else ())))

    def _fits(self, word: str) -> bool:
        from fnmatch import translate

        pattern, word = self.pattern.casefold(), word.casefold()
        if self.key in ("rank", "scale") and word != "unknown" and not _is_glob(pattern):
            return word == pattern
        return re.match(translate(pattern), word) is not None if _is_glob(pattern) else word.startswith(pattern)


def condition(text: str) -> Condition:
    """Return the condition of a `KEY=PATTERN`.

    Raises LoraInspectError for any other text or key.
    """
    key, equals, pattern = text.partition("=")
    if equals and key.lower() in _WORDS:
        return Condition(key.lower(), pattern)
    program = meant(key, *_names_of_programs()) if equals else None
    if not program:
        raise RefusedError(
            f"'{text}' is no condition KEY=VALUE; use one of the keys {listed(KEYS)}, or the name of a program."
        )
    return Condition(program, pattern)


def _names_of_programs() -> tuple[list[str], dict[str, str]]:
    """Return the names of all programs, and their titles by name."""
    from lora_inspect.converting.options import titles_of_programs

    titles = titles_of_programs()
    return sorted(titles), titles


def named_program(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """Return the name of the program that an option means.

    Raises a usage error with the nearest name if there is none.
    """
    if given is None:
        return None
    names, titles = _names_of_programs()
    return NearChoice(names, titles).convert(given, parameter, context)


def sorting_key(order: str) -> "Callable[[ScannedFile], Any]":
    """Return the key function for one of ORDERS."""
    return _ORDERS[order]


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def parse_argument(argument: str, family: str | None) -> InfoArgument:
    """Return the files of an argument of `info`, with the `family` if one is given.

    The settings on a folder's path apply to each file in it.
    """
    from lora_inspect.reading.model.settings import Settings

    try:
        path, settings = parse_without_multiplier(argument, "info")
        settings = settings.joined(Settings(architecture=family), path)
        found = files_of_several(path)
        if found and (address := pinned(path)) != path:
            path, found = address, files_of_several(address)
    except click.ClickException:
        raise
    except Exception as error:  # one path that cannot be read leaves the others their rows
        return InfoArgument((), broken=broken(argument, error), path=argument)
    if found is None:
        return InfoArgument((path,), settings, path=path)
    return folder_argument(path, found, settings)


class FolderOptions(NamedTuple):
    """The options for a folder; `jobs` is None for as many processes as make it faster.

    The rows have the verdicts of `program`; `fail_on` has the verdicts that cause the exit status 1.
    """

    all_: bool = False
    sort: str | None = None
    where: tuple[Condition, ...] = ()
    jsonl: bool = False
    jobs: int | None = None
    program: str | None = None
    fail_on: str | None = None

    @property
    def lists(self) -> bool:
        """True if an option asks for a list, whatever the paths are."""
        return self.all_ or self.sort is not None or bool(self.where) or self.jsonl or self.program is not None

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs with requested verdicts."""
        named = [self.program, *(condition.program for condition in self.where)]
        return tuple(dict.fromkeys(name for name in named if name))


def _conditions(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[Condition, ...]:
    try:
        return tuple(map(condition, given))
    except LoraInspectError as error:
        raise click.BadParameter(str(error)) from None


def named_family(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """Return the name of a model family.

    Raises a usage error with the nearest name if there is none.
    """
    from lora_inspect.option import no_family

    if given is not None and (wrong := no_family(given)):
        raise click.BadParameter(f"{given} {wrong}.")
    return given


# Those that declare no record of options say by it, too, of which family an adapter is.
architecture_option = click.option(
    "--architecture",
    metavar="NAME",
    callback=named_family,
    help="Model family of the adapters, if the names match several: flux, chroma, ….",
)


def _answers(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> "Answers":
    if not given:
        return {}
    from lora_inspect.matching.orientation import parse_answers

    try:
        return parse_answers(given)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def base_options(command: Decorated) -> Decorated:
    """Add the options for the base of comparisons."""
    of_squares = click.option(
        "--transposed",
        multiple=True,
        metavar="[GLOB=]yes|no",
        callback=_answers,
        help="yes: BASE stores square weights as (in, out); no: as (out, in). For weights with an orientation that "
        "nothing else shows: all, or those that match GLOB. Repeatable.",
    )
    of_weights = click.option(
        "--base",
        type=FilePath(),
        metavar="BASE",
        help="With --norms or --spectrum: the model of the adapter, for relative sizes, and for DoRA and OFT.",
    )
    return of_weights(of_squares(command))


def folder_options(command: Decorated) -> Decorated:
    """Add the options, by the names of the fields of FolderOptions."""
    for option in reversed(
        (
            click.option(
                "--all", "all_", is_flag=True, help="Also list the bases and other files of a folder, and each epoch."
            ),
            click.option(
                "--sort", type=click.Choice(ORDERS), help="Sort the rows; they appear after all files are read."
            ),
            click.option(
                "--where",
                multiple=True,
                metavar="KEY=VALUE",
                callback=_conditions,
                help="List only matching files, as model=wan, trigger=ink, state=need* or comfyui=wrong*. "
                "Repeatable: all must match.",
            ),
            click.option(
                "--for",
                "program",
                metavar="NAME",
                callback=named_program,
                help="Show the verdict of the program in each row, and count the verdicts.",
            ),
            click.option(
                "--fail-on",
                type=click.Choice(FAILURES),
                help="With --for: exit with 1 if a file is wrong in the program, or untested in it as well.",
            ),
            click.option("--jsonl", is_flag=True, help="Print a JSON line per file, as soon as it is read."),
            click.option(
                "--jobs",
                type=click.IntRange(1),
                metavar="N",
                help="Read a folder with N processes. [default: as many as make it faster]",
            ),
        )
    ):
        command = option(command)
    return command
