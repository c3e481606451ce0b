"""What the arguments of `info` stand for: one checkpoint, or the files of a folder.

The options of `info` that are about a folder of files: which are shown, in which order, and as what.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lora_inspect.cli.options import parse_without_multiplier
from lora_inspect.cli.terminal import failure, show_defect
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import find_checkpoints, is_collection
from lora_inspect.files.locations import settled
from lora_inspect.reading.model.settings import Settings
from lora_inspect.scanning.selection import ORDERS, Condition, condition

# The field of a record that stands for a file that could not be read.
ERROR, CODE = "error", "code"


class Asked(NamedTuple):
    """What an argument stands for: the files to read and their settings, or why they cannot be told.

    `is_collection` says that it is a folder of several checkpoints, and `path` is the argument without its settings.
    """

    files: tuple[str, ...]
    settings: Settings = Settings()
    is_collection: bool = False
    broken: dict[str, Any] | None = None
    path: str = ""


def asked(argument: str) -> Asked:
    """The files that an argument of `info` names; the settings on a folder's path are those of each file in it."""
    try:
        path, settings = parse_without_multiplier(argument, "info")
        is_folder = is_collection(path)
        path = settled(path) if is_folder else path
        files = tuple(find_checkpoints(path)) if is_folder else ()
    except click.ClickException:
        raise
    except Exception as error:  # one path that cannot be read leaves the others their rows
        return Asked((), broken=broken(argument, error), path=argument)
    return Asked(files or (path,), settings, bool(files), path=path)


def broken(path: str, error: Exception) -> dict[str, Any]:
    """The record of a file that cannot be read."""
    show_defect(error)
    return dict(failure(path, error).record())


Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class FolderOptions(NamedTuple):
    """What was asked of a folder; `jobs` is None for as many processes as pay."""

    all_: bool = False
    sort: str | None = None
    where: tuple[Condition, ...] = ()
    jsonl: bool = False
    jobs: int | None = None

    @property
    def lists(self) -> bool:
        """Whether a list was asked for, whatever the paths are."""
        return self.all_ or self.sort is not None or bool(self.where) or self.jsonl


def _conditions(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[Condition, ...]:
    try:
        return tuple(map(condition, given))
    except LoraInspectError as error:
        raise click.BadParameter(str(error)) from None


def folder_options(command: Decorated) -> Decorated:
    """Adds the options, by the names that the fields of FolderOptions have."""
    for option in reversed(
        (
            click.option("--all", "all_", is_flag=True, help="List bases and other files of a folder too."),
            click.option(
                "--sort", type=click.Choice(ORDERS), help="Order the rows, which are then shown once all are read."
            ),
            click.option(
                "--where",
                multiple=True,
                metavar="KEY=VALUE",
                callback=_conditions,
                help="List only files of which that holds, as model=wan, type=dora or state=need*; all of several.",
            ),
            click.option("--jsonl", is_flag=True, help="Print a JSON object a line for each file, as it is read."),
            click.option(
                "--jobs",
                type=click.IntRange(1),
                metavar="N",
                help="Read a folder with N processes; without it with as many as pay.",
            ),
        )
    ):
        command = option(command)
    return command
