"""An audit hook that stops, and keeps, whatever a command that reads files has no business to do.

Python tells it of what Python itself opens, imports, compiles and starts. What compiled libraries open by themselves
(safetensors, torch) it does not see.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

# Nothing comes of these. Each is raised by a command that does as it should.
_HARMLESS = frozenset(
    {
        "_thread.start_new_thread",
        "builtins.id",
        "fcntl.flock",
        "object.__getattr__",
        "object.__setattr__",
        "sys._getframe",
        "sys._getframemodulename",
    }
)
# Reading and writing, with the places of the paths among the arguments.
_LOOKS = {"os.listdir": (0,), "os.scandir": (0,), "os.walk": (0,)}
_CHANGES = {
    "os.chmod": (0,), "os.chown": (0,), "os.link": (0, 1), "os.mkdir": (0,), "os.remove": (0,), "os.rename": (0, 1),
    "os.rmdir": (0,), "os.symlink": (1,), "os.truncate": (0,), "os.utime": (0,), "shutil.copyfile": (1,),
    "shutil.copymode": (1,), "shutil.copystat": (1,), "shutil.copytree": (1,), "shutil.move": (0, 1),
    "shutil.rmtree": (0,),
}  # fmt: skip
# The one function of the C library that is called, to rename.
_LIBRARY = {"ctypes.dlopen": (None,), "ctypes.dlsym": ("renameat2",), "ctypes.get_errno": ()}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What Python's named tuples compile and run to make one of its fields, whose names are in it twice.
_MADE = re.compile(rb"lambda _cls, (\w+(?:, \w+)*): _tuple_new\(_cls, \(\1,?\)\)")
# Where Linux says how many cores a process may keep busy.
_CORES = re.compile(r"/proc/self/cgroup|/sys/fs/cgroup(/.*)?/cpu\.max")
# The list of loaded libraries, among which threadpoolctl looks for numpy's BLAS to hold it to one thread.
_LOADED = "/proc/self/maps"
# Where Python looks for the versions of installed packages, which `compat` compares: its own path, as it is here.
_PACKAGES = frozenset(
    path for path in sys.path if path.startswith((f"{sys.prefix}{os.sep}", f"{sys.base_prefix}{os.sep}"))
)
# pytest and the tests put folders of the checkout on that path; a command that users start has none of them.
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_VERSION = re.compile(r"[^/\\]+\.(dist-info|egg-info)[/\\](METADATA|PKG-INFO)")
_BESIDE = re.compile(r"(?s)\.[0-9a-f]{16}\.partial(\.(lock|old|gone))?(/.*)?")


# Where the shards of an output lie that several runs make.
_PARTS = ".parts"


class Forbidden(BaseException):
    """What was about to happen; no `except Exception` hides it."""


@dataclass
class Allowed:
    """Where a command may read, and which outputs it may write: real paths of folders with all in them, and of files.

    In the folders of the outputs, in what other runs have made of their parts, and in those `beside` what was named, it
    may look, but not read. Below `trees` it
    may make whatever it likes. The files `rewritten` may be opened for writing as they stand, and of the `journals`
    each may be written and removed.
    """

    folders: tuple[str, ...]
    files: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()
    outputs: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    rewritten: frozenset[str] = frozenset()
    journals: frozenset[str] = frozenset()
    seen: list[str] = field(default_factory=list)

    def reads(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real in self.files or any(_is_in(real, folder) for folder in self.folders)

    def looks(self, path: str) -> bool:
        real = os.path.realpath(path)
        return (
            self.reads(path)
            or real in self.beside
            or any(real in (_resolved(output), os.path.dirname(_resolved(output))) for output in self.outputs)
            or any(_is_in(real, f"{_resolved(output)}{_PARTS}") for output in self.outputs)
        )

    def writes(self, path: str, takes_its_place: bool = False) -> bool:
        """Whether a path is a partial file of an output or lies in one; or the output itself, whose place one takes."""
        return any(
            _is_beside(path, output) or (takes_its_place and _same(path, output)) for output in self.outputs
        ) or any(_is_in(_resolved(path), _resolved(tree)) for tree in self.trees)

    def rewrites(self, path: str) -> bool:
        """Whether a file may be changed where it stands."""
        return _resolved(path) in self.rewritten or self.is_journal(path)

    def is_journal(self, path: str) -> bool:
        """Whether a path is that of a journal."""
        return _resolved(path) in self.journals


def _is_of_packages(path: str) -> bool:
    """Whether a path is one of the packages' folders, which may be an archive, or has the version of a package."""
    below = (path[len(folder) + 1 :] for folder in _PACKAGES if path.startswith(folder + os.sep))
    return path in _PACKAGES or any(map(_VERSION.fullmatch, below))


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _is_beside(path: str, output: str) -> bool:
    folder, name = os.path.split(_resolved(output))
    below = os.path.relpath(_resolved(path), folder)
    # The name of a long output is cut before its random part.
    stem = name if len(os.fsencode(name)) <= 200 else name[:40]
    return below.startswith(stem) and _BESIDE.search(below[len(stem) :]) is not None


def _same(path: str, output: str) -> bool:
    return _resolved(path) == _resolved(output)


def _resolved(path: str) -> str:
    """The path with links followed in its folder; its last name is meant itself."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


_watching: Allowed | None = None
_made_record = False
_installed = False


@contextmanager
def watched(allowed: Allowed) -> Iterator[None]:
    """Stops whatever is not `allowed`, and adds it to what it has seen."""
    global _watching, _installed
    if not _installed:  # there is no way to take an audit hook back
        sys.addaudithook(_hook)
        _installed = True
    path = [folder for folder in sys.path if folder in _PACKAGES or not _is_in(folder, _CHECKOUT)]
    with mock.patch.object(sys, "path", path):
        _watching = allowed
        try:
            yield
        finally:
            _watching = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _watching
    if _watching is None or event in _HARMLESS:
        return
    allowed, _watching = _watching, None  # what the judgement itself opens is not judged
    try:
        wrong = _judge(event, arguments, allowed)
    finally:
        _watching = allowed
    if wrong:
        allowed.seen.append(wrong)
        raise Forbidden(wrong)


def _judge(event: str, arguments: tuple[Any, ...], allowed: Allowed) -> str | None:
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int):
            return None
        path = os.fsdecode(path)
        if flags & _WRITING and path != os.devnull:
            return None if allowed.writes(path) or allowed.rewrites(path) else f"opens {path!r} for writing"
        is_known = _CORES.fullmatch(path) or (path == _LOADED and _is_of_threads()) or _is_of_packages(path)
        return None if is_known or allowed.looks(path) else f"opens {path!r}"
    if event in _LOOKS:
        paths = _paths(arguments, _LOOKS[event])
        return next(
            (f"looks into {path!r}" for path in paths if path not in _PACKAGES and not allowed.looks(path)), None
        )
    if event in _CHANGES:
        takes_place = event in ("os.rename", "os.link")
        paths = _paths(arguments, _CHANGES[event])
        if event == "os.remove":
            paths = [path for path in paths if not allowed.is_journal(path)]
        return next((f"{event} of {path!r}" for path in paths if not allowed.writes(path, takes_place)), None)
    if event == "import":
        return f"imports {arguments[0]}"
    if event in ("compile", "exec") and _makes_record(event, arguments):
        return None
    if event.startswith("ctypes.") and _is_of_threads():
        return None
    if event in _LIBRARY:
        names = _LIBRARY[event]
        return None if not names or arguments[-1] in names else f"{event} {arguments!r:.200}"
    return f"{event} {arguments!r:.200}"


def _is_of_threads() -> bool:
    """Return True if threadpoolctl does it."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]  # the outermost frame has none
        if frame.f_globals.get("__name__") == "threadpoolctl":
            return True
    return False


def _makes_record(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a named tuple is given the function that makes it: what is compiled, and at once run."""
    global _made_record
    source, before = arguments[0], _made_record
    _made_record = event == "compile" and isinstance(source, bytes) and _MADE.fullmatch(source) is not None
    return _made_record or (event == "exec" and before)


def _paths(arguments: tuple[Any, ...], places: tuple[int, ...]) -> list[str]:
    found = [arguments[place] for place in places]
    paths = [os.fsdecode(os.curdir if path is None else path) for path in found if not isinstance(path, int)]
    if len(arguments) == 2 and arguments[1] not in (None, -1) and isinstance(arguments[1], int):
        folder = os.readlink(f"/proc/self/fd/{arguments[1]}")  # what a tree is removed by
        return [os.path.join(folder, path) for path in paths]
    return paths
