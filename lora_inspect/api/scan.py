"""The files of folders, from Python: a short account of each as soon as it is read."""

import os
from collections.abc import Iterable, Iterator

from lora_inspect.api.arguments import PathWithSettings, WatchProgress, watched, without_strength
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.ops.info import as_json
from lora_inspect.ops.scan import files_of, scan_files
from lora_inspect.scanning.scan_file import ScannedFile

__all__ = ["ScannedFile", "scan"]


@in_a_sentence()
def scan(
    paths: PathWithSettings | Iterable[PathWithSettings],
    *,
    recursive: bool = True,
    records: bool = False,
    jobs: int | None = 1,
    progress: WatchProgress | None = None,
) -> Iterator[ScannedFile]:
    """Says what each file of a folder is, or of several paths, in their order, as `info` of a folder does.

    A folder stands for the checkpoints in it, and for those in folders below it where `recursive`. With `records` each
    account has the record of `info --json` as its `record`. `jobs` is the number of processes, None for as many as pay;
    a script that asks for more than one does its work under `if __name__ == "__main__":`, as with all that starts
    processes in Python. `progress(done, total)` is told of files.

    What is wrong with a file is the `error` of its account, and raises nothing. Raises LoraInspectError for a folder
    that cannot be listed.
    """
    several = [paths] if isinstance(paths, (str, os.PathLike, tuple)) else list(paths)
    named = [without_strength(one) for one in several]
    listing = [(file, settings) for path, settings in named for file in files_of(path, recursive)]
    return scan_files(listing, jobs, watched(progress, len(listing)), as_json if records else None)
