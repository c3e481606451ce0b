"""What the arguments of `info` stand for: one checkpoint, or the files of a folder."""

from typing import Any

import click

from lora_inspect.cli.failures import sentence_of, show_defect
from lora_inspect.cli.path_settings import parse_without_strength
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import find_checkpoints, is_collection
from lora_inspect.files.locations import settled
from lora_inspect.reading.model.settings import Settings

# The field of a record that stands for a file that could not be read.
ERROR = "error"


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
        path, settings = parse_without_strength(argument, "info")
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
    return {"path": path, ERROR: sentence_of(error, path)}
