"""Outputs: their places, the files that they may replace, and their appearance complete or not at all.

The place follows from the name that the user gives, and from the kind of output: a file or a folder. Standard library
only.
"""

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from lora_inspect.errors import (
    CouldNotWorkError,
    DiskRefused,
    LoraInspectError,
    NotFoundError,
    RefusedError,
    WouldOverwriteError,
)
from lora_inspect.files.deferred_signals import committing
from lora_inspect.files.file_types import PICKLE_ENDINGS
from lora_inspect.files.input_file import Identity, check_unchanged
from lora_inspect.files.store_outputs import (
    check_store_output,
    check_store_replaceable,
    is_input_address,
    output_address,
)
from lora_inspect.files.system import create, is_at, rename_new, sync_file, sync_folder
from lora_inspect.files.temp_files import claimed, is_of_dead_run, left_under, replace_folder, without_slash
from lora_inspect.stores.address import is_remote, join

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Of a folder the system says itself that no file can replace it.
_REPLACED = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR)


def check_output(output: str, inputs: Iterable[str], force: bool, folder: bool = False) -> None:
    """Raise LoraInspectError if `output` would overwrite an input or, without `force`, anything at all."""
    if is_remote(output):
        check_store_output(output, inputs, force, folder)
        return
    if "\0" in output:
        raise RefusedError(output, "a path cannot hold a NUL character", "name another output")
    parent = os.path.dirname(without_slash(output)) or os.curdir
    if not os.path.isdir(parent):
        if os.path.lexists(parent):
            raise RefusedError(output, f"{parent} is not a folder", "choose another place")
        raise NotFoundError(output, f"the folder {parent} does not exist", "make it first")
    if not folder and not os.path.basename(output):
        raise RefusedError(output or "the empty name", "it cannot be a file", "name the file to write")
    if not os.path.lexists(output):
        return
    if is_input(output, inputs):
        raise RefusedError(output, "it is an input of the command", "choose another output")
    if not os.path.isdir(output):
        _check_file(output)
        if os.path.islink(output):
            raise RefusedError(output, "it is a link", "name the file that it leads to, or another output")
    if not force:
        raise WouldOverwriteError(output, "it exists", "choose another output or add --force")
    if os.path.isdir(output) != folder:
        raise WouldOverwriteError(
            output, f"it is {'a folder' if os.path.isdir(output) else 'a file'}", "remove it first"
        )
    if folder and os.path.islink(output):
        raise RefusedError(output, "it is a link to a folder", "name the folder itself")
    if os.path.basename(without_slash(output)) in (os.curdir, os.pardir):
        raise RefusedError(output, "lora-inspect writes the new folder next to the old one", "write its own name")
    if os.path.ismount(output):
        way_out = "name a folder in it" if folder else "choose another output"
        raise RefusedError(output, "a disk or a volume is mounted there", way_out)


def is_input(output: str, inputs: Iterable[str]) -> bool:
    """Return True if `output` is one of the inputs, under any name, or a folder that holds one."""
    if is_remote(output):
        return is_input_address(output, inputs)
    on_disk = [path for path in inputs if not is_remote(path)]
    return os.path.exists(output) and any(os.path.samefile(path, output) or _lies_in(path, output) for path in on_disk)


def check_replaceable(output: str, names: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Raise LoraInspectError if replacing the folder `output` would lose more than `names` and `folders`.

    `names` are files and `folders` its subfolders, by paths relative to `output`.
    """
    if is_remote(output):
        check_store_replaceable(output, {name.replace(os.sep, "/") for name in names})
        return
    _check_lost(output, {*names, *(os.path.join(folder, "") for folder in folders)})


def _check_file(output: str) -> None:
    """Raise LoraInspectError if the name belongs to a pipe, a device or a socket, which a file must not replace."""
    if os.path.lexists(output) and stat.S_IFMT(os.lstat(output).st_mode) not in _REPLACED:
        raise RefusedError(output, "it is neither a file nor a folder", "choose another output")


def _check_lost(output: str, written: set[str]) -> None:
    if others := sorted(_entries(output) - written):
        raise WouldOverwriteError(
            output, f"the folder holds {others[0]}, which the command does not write", "choose another output"
        )


@contextmanager
def new_file(
    output: str,
    inputs: Mapping[str, Identity] | None = None,
    force: bool = False,
    prove: Callable[[str], None] | None = None,
) -> Iterator[int]:
    """Yield the descriptor of a file that gets the name `output` if the block succeeds, and is removed otherwise.

    With `force` it replaces a file of that name, and also a link if there are no `inputs`, so that a save during
    training does not fail for it. `prove` is called with the path of the whole file before it gets the name, and an
    error from it prevents that. Raises LoraInspectError if something else has the name, the disk refuses, or one of the
    `inputs` changed since it was read. An output for a store is made and proved locally first.
    """
    if is_remote(output):
        from lora_inspect.files.upload import sent_to_store

        with sent_to_store(output, inputs, force) as sending, new_file(sending.path, inputs, prove=prove) as descriptor:
            yield descriptor
        return
    with refusing(output), claimed(output) as partial:
        descriptor = create(partial)
        try:
            yield descriptor
            os.fsync(descriptor)
            is_whole = is_at(descriptor, partial)
        finally:
            os.close(descriptor)
        if not is_whole:
            raise CouldNotWorkError(
                output, f"another program removed {partial} during the run", "run the command again"
            )
        if prove:
            prove(partial)
        check_unchanged(inputs or {})
        with committing():
            if force:
                if inputs:
                    check_output(output, inputs, force)
                _check_file(output)
                os.replace(partial, output)
            else:
                rename_new(partial, output)
        _sync_name(output)


@contextmanager
def new_folder(output: str, inputs: Mapping[str, Identity] | None = None, force: bool = False) -> Iterator[str]:
    """Yield a folder to fill that replaces `output` if the block succeeds, and is removed otherwise.

    With `force` it also replaces a folder if the new one has everything in it. Raises LoraInspectError if there is
    anything else, the disk refuses, or one of the `inputs` changed since it was read. An output for a store is made
    locally first.
    """
    if is_remote(output):
        from lora_inspect.files.upload import sent_to_store

        with sent_to_store(output, inputs, force) as sending, new_folder(sending.path, inputs) as folder:
            yield folder
        return
    output = without_slash(output)
    with refusing(output), claimed(output) as partial:
        try:
            os.mkdir(partial)
            yield partial
            take_place(partial, output, inputs or {}, force)
        except LoraInspectError as error:
            error.replace(partial, output)
            raise
    if left := left_under(partial):
        raise CouldNotWorkError(
            output, "it is complete, but lora-inspect cannot remove the old output", f"remove {' and '.join(left)}"
        )


def take_place(folder: str, output: str, inputs: Mapping[str, Identity], force: bool) -> None:
    """Give a complete folder the name `output`, once the disk has its content.

    With `force`, the replaced folder then has the folder's name, or that name with .old. Raises OSError if the disk
    refuses, and LoraInspectError like `new_folder`.
    """
    _sync(folder)
    check_unchanged(inputs)
    with committing():
        if force and os.path.lexists(output):
            check_output(output, inputs, force, folder=True)
            _check_lost(output, _entries(folder))
            replace_folder(folder, output)
        else:
            rename_new(folder, output)
    _sync_name(output)


@contextmanager
def refusing(output: str) -> Iterator[None]:
    """Turn the system's errors about the output into LoraInspectError."""
    try:
        yield
    except LoraInspectError:
        raise
    except FileExistsError:
        raise WouldOverwriteError(
            output, "it appeared while the command ran", "choose another output, or run the command again with --force"
        ) from None
    except OSError as error:
        way_out = "free space or choose" if error.errno in NO_SPACE else "choose"
        raise DiskRefused(
            output,
            f"lora-inspect cannot write it ({error.strerror})",
            f"{way_out} another place",
            reason=error.strerror,
        ) from None


def _sync(folder: str) -> None:
    """Sync a folder with everything below it to disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync_file(os.path.join(parent, name))
        sync_folder(parent)


def _sync_name(output: str) -> None:
    """Sync the new name of a complete output to disk."""
    try:
        sync_folder(os.path.dirname(output) or os.curdir)
    except OSError as error:
        raise CouldNotWorkError(
            output, f"it is complete, but the disk may not keep its name ({error.strerror})", "run the command again"
        ) from None


def _entries(folder: str) -> set[str]:
    """Return everything below `folder`, by relative paths; subfolders have a slash at the end.

    Leftovers of runs that died are excluded.
    """
    found = set()
    for parent, folders, files in os.walk(folder):
        dead = {name for name in (*folders, *files) if is_of_dead_run(os.path.join(parent, name))}
        folders[:] = [name for name in folders if name not in dead]
        for name in {*folders, *files} - dead:
            path = os.path.join(parent, name)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found.add(os.path.relpath(path, folder) + (os.sep if is_folder else ""))
    return found


def _lies_in(path: str, folder: str) -> bool:
    return os.path.isdir(folder) and os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


@contextmanager
def folder_of_outputs(folder: str) -> Iterator[None]:
    """Make the folder with its parents; afterwards remove the new folders that are empty. Stores have no folders."""
    if is_remote(folder):
        yield
        return
    missing: list[str] = []
    path = os.path.abspath(folder)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for made in missing:
                os.rmdir(made)


SAFETENSORS_ENDING, GGUF_ENDING, PAGE_ENDING = ".safetensors", ".gguf", ".html"
# With which names end that are meant for a file of weights. What follows the last dot of others, as a version number
# does, is a part of the name.
_ENDINGS = (
    SAFETENSORS_ENDING,
    *PICKLE_ENDINGS,
    ".sft",
    GGUF_ENDING,
    ".h5",
    ".json",
    ".msgpack",
    ".npz",
    ".onnx",
    ".zip",
)

_FORMATS = {SAFETENSORS_ENDING: "safetensors", GGUF_ENDING: "GGUF", PAGE_ENDING: "HTML"}

# What programs that write to their standard output call it.
_STREAM = "-"


def file_output(named: str, name: str, inputs: Collection[str], ending: str = SAFETENSORS_ENDING) -> str:
    """Return the path of an output file: `named`, or `name` with the right `ending` if `named` is a folder.

    Raises LoraInspectError for a folder that does not exist, and for a name with another ending than the written format
    has. The paths of inputs, devices and the like are returned unchanged, so that later checks refuse them.
    """
    _refuse_nothing(named)
    if is_remote(named):
        named = output_address(join(named, _bare(name) + ending) if named.endswith("/") else named)
    if os.path.isdir(named):
        return os.path.join(named, _bare(name) + ending)
    if os.path.basename(named) == ending:
        raise RefusedError(named, "it is an ending without a name", "put a file name before it")
    if _ends_with_slash(named):
        raise NotFoundError(named, "there is no such folder", "make it first, or name a file")
    if named.endswith(ending) or is_input(named, inputs) or _is_no_file(named):
        return named
    proper = _bare(named) + ending
    way_out = f"name it {proper}" if not os.path.lexists(proper) else f"choose a name that ends in {ending}"
    raise RefusedError(named, f"the output is a {_FORMATS[ending]} file", way_out)


def folder_output(named: str, because: str, inputs: Collection[str]) -> str:
    """Return the path of an output folder; `because` begins the sentence of an error.

    Raises LoraInspectError for a name that is meant for a file. The path of an input is returned unchanged, so that a
    later check refuses it.
    """
    _refuse_nothing(named)
    if is_remote(named):
        named = output_address(named)
    bare = _bare(named)
    if bare == named or os.path.isdir(named) or is_input(named, inputs):
        return named
    which = f", such as -o {bare}" if not os.path.lexists(bare) else " that does not exist"
    raise RefusedError(named, f"{because}, so the output is a folder", f"name a folder{which}")


def _refuse_nothing(named: str) -> None:
    if not named:
        raise RefusedError("the empty name: it cannot be an output; name the file or the folder to write.")
    if named == _STREAM:
        raise RefusedError(named, "an output cannot be a stream", "name the file or the folder to write")


def _bare(name: str) -> str:
    """Return the name without the endings of weights."""
    stem, ending = os.path.splitext(name)
    while ending.lower() in _ENDINGS:
        name = stem
        stem, ending = os.path.splitext(name)
    return name


def _ends_with_slash(named: str) -> bool:
    return named.endswith((os.sep, os.altsep or os.sep))


def _is_no_file(named: str) -> bool:
    return os.path.lexists(named) and not os.path.isfile(named)
