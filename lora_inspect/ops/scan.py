"""Short accounts of the files of a folder, one after the other as they are read."""

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial

from lora_inspect.errors import CouldNotWorkError
from lora_inspect.files.discovery import files_of_several
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.settings import Settings
from lora_inspect.scanning.originals import Originals
from lora_inspect.scanning.scan_file import Record, ScannedFile, scan_file
from lora_inspect.scanning.workers import side_by_side
from lora_inspect.stores.address import is_remote

# More processes than that wait for the disk and for each other.
_MOST_JOBS = 2


def scan(
    paths: Iterable[str | os.PathLike[str]],
    recursive: bool = True,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    jobs: int | None = 1,
    progress: Progress = silent,
    record: Record | None = None,
) -> Generator[ScannedFile, None, None]:
    """Yield the account of every file that the paths name, as soon as it is read, in the order of the paths.

    A file that seems to be a copy of a later one waits for it.

    A path is a file or a folder. A folder with several checkpoints, or with other folders, stands for all of them, and
    for pickles and other weights that are never read; folders below it count only with `recursive`. `settings` are
    those of the user for each file. `jobs` is the number of processes, None for as many as make it faster. A script
    that asks for more than one must work under `if __name__ == "__main__"`, as with all processes in Python; the
    processes do not know additions to a registry at run time. `progress` counts files. `record` makes an additional
    record for the account.

    An unreadable file raises nothing: its account has an `error`. Close the iterator if you do not exhaust it.
    """
    listing = [(file, settings) for path in paths for file in files_of(os.fspath(path), recursive)]
    yield from scan_files(listing, jobs, progress, record)


def files_of(path: str, recursive: bool = True) -> list[str]:
    """Return the files of a path: those of a folder of several that may hold weights, else the path itself.

    Raises OSError for a folder that cannot be read.
    """
    files = files_of_several(path)
    if files is None:
        return [path]
    own = [file for file in files.weights if recursive or os.path.dirname(file) == path.rstrip(os.sep)]
    return own or [path]


def scan_files(
    listing: Iterable[tuple[str, Settings]],
    jobs: int | None = 1,
    progress: Progress = silent,
    record: Record | None = None,
    programs: Sequence[str] = (),
) -> Generator[ScannedFile, None, None]:
    """Scan already listed files as `scan` does, each with its own settings; with verdicts of some `programs`."""
    things = list(listing)
    count = min(_MOST_JOBS, os.cpu_count() or 1) if jobs is None else jobs
    if any(is_remote(path) for path, _ in things):
        count = 1  # others would not know what of an address is never printed
    originals = Originals([path for path, _ in things])
    scan_one = partial(_scan, record=record, programs=programs)
    with closing(side_by_side(scan_one, things, count, _lost)) as results:
        for found in results:
            progress(1)
            yield from originals.add(found)


def _scan(asked: tuple[str, Settings], record: Record | None, programs: Sequence[str]) -> ScannedFile:
    return scan_file(*asked, record, programs)


def _lost(asked: tuple[str, Settings]) -> ScannedFile:
    path, _ = asked
    error = CouldNotWorkError(path, "the process that read it ended without an answer", "read it with --jobs 1")
    return ScannedFile(path, error=error)
