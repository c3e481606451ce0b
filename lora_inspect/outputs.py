"""Where an output may go, and how a folder appears complete or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lora_inspect.errors import LoraInspectError


def check_output(output: str, inputs: Iterable[str], force: bool, folder: bool = False) -> None:
    """Raises LoraInspectError where `output` would overwrite an input or, without `force`, anything at all."""
    parent = os.path.dirname(os.path.abspath(output))
    if not os.path.isdir(parent):
        raise LoraInspectError(f"{output}: the folder {parent} does not exist; make it first.")
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


def check_replaceable(output: str, names: Iterable[str]) -> None:
    """Raises LoraInspectError where replacing the folder `output` would lose more than files called `names`."""
    others = sorted(set(os.listdir(output)) - set(names)) if os.path.isdir(output) else []
    if others:
        raise LoraInspectError(
            f"{output}: the folder holds {others[0]}, which the command does not write; choose another output."
        )


@contextmanager
def new_folder(output: str) -> Iterator[str]:
    """A folder to fill that takes the place of `output` when the block ends well, and vanishes otherwise."""
    partial = f"{output.rstrip(os.sep)}.{os.getpid()}.partial"
    replaced = f"{partial}.old"
    try:
        os.mkdir(partial)
        yield partial
        if os.path.isdir(output):
            os.rename(output, replaced)
        os.rename(partial, output)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if os.path.isdir(replaced) and not os.path.lexists(output):
            os.rename(replaced, output)
        if isinstance(error, OSError):
            raise LoraInspectError(
                f"{output}: it cannot be written ({error.strerror}); choose another place."
            ) from None
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _lies_in(path: str, folder: str) -> bool:
    return os.path.isdir(folder) and os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)
