"""Where an output may go, and how a folder appears complete or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from lora_inspect.errors import LoraInspectError
from lora_inspect.input_file import Identity, check_unchanged


def check_output(output: str, inputs: Iterable[str], force: bool, folder: bool = False) -> None:
    """Raises LoraInspectError where `output` would overwrite an input or, without `force`, anything at all."""
    parent = os.path.dirname(os.path.abspath(output))
    if not os.path.isdir(parent):
        raise LoraInspectError(f"{output}: the folder {parent} does not exist; make it first.")
    if not folder and not os.path.basename(output):
        raise LoraInspectError(f"{output or 'the empty name'}: it cannot be a file; name the file to write.")
    if not os.path.lexists(output):
        return
    for path in inputs:
        if os.path.exists(output) and (os.path.samefile(path, output) or _lies_in(path, output)):
            raise LoraInspectError(f"{output}: it is an input of the command; choose another output.")
    if not force:
        raise LoraInspectError(f"{output}: it exists; choose another output or add --force.")
    if os.path.isdir(output) != folder:
        raise LoraInspectError(f"{output}: it is {'a folder' if os.path.isdir(output) else 'a file'}; remove it first.")
    if folder and os.path.islink(output):
        raise LoraInspectError(f"{output}: it is a link to a folder; name the folder itself.")


def check_replaceable(output: str, names: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Raises LoraInspectError where replacing the folder `output` would lose more than `names` and `folders`.

    `names` are files and `folders` its subfolders, by paths relative to `output`.
    """
    if others := sorted(_entries(output) - set(names) - {os.path.join(folder, "") for folder in folders}):
        raise LoraInspectError(
            f"{output}: the folder holds {others[0]}, which the command does not write; choose another output."
        )


@contextmanager
def new_folder(output: str, inputs: Mapping[str, Identity] | None = None) -> Iterator[str]:
    """A folder to fill that takes the place of `output` when the block ends well, and vanishes otherwise.

    Raises LoraInspectError where one of the `inputs` is not the file any more that was read.
    """
    partial = f"{output.rstrip(os.sep)}.{os.getpid()}.partial"
    replaced = f"{partial}.old"
    try:
        os.mkdir(partial)
    except OSError as error:
        raise _refused(output, error) from None
    try:
        yield partial
        check_unchanged(inputs or {})
        if os.path.isdir(output):
            os.rename(output, replaced)
        os.rename(partial, output)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if os.path.isdir(replaced) and not os.path.lexists(output):
            os.rename(replaced, output)
        if isinstance(error, OSError):
            raise _refused(output, error) from None
        if isinstance(error, LoraInspectError):
            raise LoraInspectError(str(error).replace(partial, output.rstrip(os.sep))) from None
        raise
    finally:
        if os.path.lexists(output):
            shutil.rmtree(replaced, ignore_errors=True)


def _refused(output: str, error: OSError) -> LoraInspectError:
    return LoraInspectError(f"{output}: it cannot be written ({error.strerror}); choose another place.")


def _entries(folder: str) -> set[str]:
    """All that is below `folder`, by paths relative to it, those of its subfolders with a slash at the end."""
    found = set()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found.add(os.path.relpath(path, folder) + (os.sep if is_folder else ""))
    return found


def _lies_in(path: str, folder: str) -> bool:
    return os.path.isdir(folder) and os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)
