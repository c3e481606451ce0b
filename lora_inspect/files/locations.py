"""The type and content of a path, on a disk or at an address, and the links of a folder. Standard library only.

A disk is asked each time. A store is asked once within `looking`, as each question is a request.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from lora_inspect.errors import RefusedError
from lora_inspect.stores.address import is_remote

# File systems take names of 255 bytes. Names with more bytes than this are shortened before an ending is added, to so
# many characters and a hash.
_LONGEST_STEM, _KEPT_OF_LONGER = 200, 40


def looking(path: str) -> AbstractContextManager[object]:
    """Return a block in which answers about addresses are cached, if the path is one."""
    if not is_remote(path):
        return nullcontext()
    from lora_inspect.stores.stat import one_look

    return one_look()


def shown(path: str) -> str:
    """Return the path in its printable form: an address without parts that may be secret."""
    if not is_remote(path):
        return path
    from lora_inspect.stores.address import printable_address

    return printable_address(path)


def pinned(path: str) -> str:
    """Return the path to read: for a repository, the address at its present commit.

    A path on a disk is returned unchanged, and so is an address with nothing at it, in its printable form.
    """
    if not is_remote(path):
        return path
    from lora_inspect.stores.stat import look

    found = look(path)
    return found.address if found else shown(path)


def is_folder(path: str) -> bool:
    """Return True if a folder is there; servers have none."""
    if not is_remote(path):
        return os.path.isdir(path)
    from lora_inspect.stores import stat

    return stat.is_folder(path)


def is_file(path: str) -> bool:
    """Return True if a file, or a link to one, is there."""
    return exists(path) and not is_folder(path) if is_remote(path) else os.path.isfile(path)


def exists(path: str) -> bool:
    """Return True if anything is there, even a broken link."""
    if not is_remote(path):
        return os.path.lexists(path)
    from lora_inspect.stores import stat

    return stat.exists(path)


def names_in(folder: str) -> list[str]:
    """Return the names of everything in a folder.

    Raises OSError, or LoraInspectError for an address, if the folder cannot be read.
    """
    if not is_remote(folder):
        return os.listdir(folder or os.curdir)
    from lora_inspect.stores.address import split
    from lora_inspect.stores.stat import in_folder

    return [split(found.address)[1] for found in in_folder(folder)]


def walk(folder: str, onerror: Callable[[OSError], object] | None = None) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield like `os.walk` each folder with the names of the folders and the files in it, from the top down."""
    if not is_remote(folder):
        yield from os.walk(folder, onerror=onerror)
        return
    root = pinned(folder).rstrip("/")
    inside: dict[str, tuple[set[str], set[str]]] = {root: (set(), set())}
    for parts in _parts_below(root):
        place = root
        for name in parts[:-1]:
            inside[place][0].add(name)
            place = join(place, name)
            inside.setdefault(place, (set(), set()))
        inside[place][1].add(parts[-1])
    waiting = [root]
    while waiting:
        place = waiting.pop(0)
        inner, files = map(sorted, inside[place])
        yield place, inner, files  # who goes on without some of the folders takes them out
        waiting = [join(place, name) for name in inner] + waiting


def _parts_below(root: str) -> Iterator[list[str]]:
    """Yield the names that lead to each file below a folder of a store.

    Raises LoraInspectError for names that are invalid on a disk.
    """
    from lora_inspect.stores.stat import below

    for found in below(root):
        parts = found.address[len(root) + 1 :].split("/")
        if any(part in ("", os.curdir, os.pardir) or os.sep in part for part in parts):
            raise RefusedError(found.address, "a file on a disk cannot have this name", "name the file")
        yield parts


def join(folder: str, *names: str) -> str:
    """Join names to the path of a folder."""
    if not is_remote(folder):
        return os.path.join(folder, *names)
    from lora_inspect.stores.address import join as join_address

    return join_address(folder, *names)


def real_path(root: str, name: str) -> str:
    """Return the path of the file that `name` in the folder `root` leads to; a path in a store stays as it is.

    Raises RefusedError for a link that leads out of the folder, to a folder or nowhere. Only the links of the Hugging
    Face cache, from `models--x/snapshots/y` into `models--x/blobs`, may leave it.
    """
    path = join(root, name)
    if is_remote(root):
        return path
    inside = os.path.realpath(root)
    if not os.path.islink(path):
        return os.path.join(inside, name)
    try:
        target = os.path.realpath(path, strict=True)
    except OSError:
        raise _refused_link(path, "leads nowhere") from None
    if os.path.isdir(target):
        raise _refused_link(path, "leads to a folder")
    if not target.startswith(os.path.join(inside, "")) and os.path.dirname(target) != _blobs(inside):
        raise _refused_link(path, "leads outside the folder")
    return target


def _blobs(snapshot: str) -> str | None:
    """Return the folder in the Hugging Face cache with the files that a snapshot, or a folder in it, links to."""
    folder = snapshot
    while (parent := os.path.dirname(folder)) != folder:
        repository = os.path.dirname(parent)
        if os.path.basename(parent) == "snapshots" and os.path.basename(repository).startswith("models--"):
            return os.path.join(repository, "blobs")
        folder = parent
    return None


def _refused_link(path: str, how: str) -> RefusedError:
    return RefusedError(
        path, f"it is a link to {os.readlink(path)}, which {how}", "put the file itself there or remove the link"
    )


def short_stem(name: str) -> str:
    """Return the stem of the names next to a file: its own name, or the beginning and a hash of a long one."""
    content = os.fsencode(name)
    if len(content) <= _LONGEST_STEM:
        return name
    import hashlib

    return f"{name[:_KEPT_OF_LONGER]}.{hashlib.sha256(content).hexdigest()[:16]}"


def bytes_at(path: str) -> int:
    """Return the size of a file. Raises OSError or LoraInspectError if there is none."""
    if not is_remote(path):
        return os.path.getsize(path)
    from lora_inspect.stores.stat import look_at_file

    found = look_at_file(path)
    return found.answer.bytes if found.answer else 0


def begin_reading(files: list[str]) -> None:
    """Fetch the first bytes of many files at once, if they are remote and inside a `looking` block."""
    if files and is_remote(files[0]):
        from lora_inspect.stores.stat import begin

        begin(files)


def is_of_server(path: str) -> bool:
    """Return True if a path is on a web server, which lists no folders."""
    from lora_inspect.stores.address import HTTP, HTTPS, scheme_of

    return is_remote(path) and scheme_of(path) in (HTTP, HTTPS)


def refuse_remote(path: str, way_out: str) -> None:
    """Raise LoraInspectError for an address, where only files on a disk can be changed."""
    if is_remote(path):
        raise RefusedError(path, "lora-inspect only reads files at addresses", way_out)
