"""OUT.parts: the parts of one output folder that several processes write, file by file. Standard library only.

    OUT.parts/merge.json          the merge that the parts belong to; the first process that writes it claims them
    OUT.parts/shards/NAME         a complete file; like every output it is written next to that first
    OUT.parts/entries/NAME.json   the record of that file
    OUT.parts/whole               the folder that gets the name OUT; complete files move into it at the end
    OUT.parts/finish.lock         locked by the process that finishes, as long as it lives

Processes may be on several machines that do not share locks. So two processes may do any step at the same time, or
repeat it after one was killed: each step replaces something complete by the same. Only the last step, which makes OUT,
succeeds once.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress

from lora_inspect.errors import LoraInspectError, WouldOverwriteError
from lora_inspect.files.input_file import Identity
from lora_inspect.files.outputs import check_output, check_replaceable, new_file, refusing, take_place
from lora_inspect.files.system import close_locked, create, is_at, lock, open_itself, rename_new
from lora_inspect.files.temp_files import claimed, is_leftover, remove_leftovers, without_slash
from lora_inspect.sentences import counted

_ENDING, _ENTRY = ".parts", ".json"
_SHARDS, _ENTRIES, _WHOLE, _OLD, _LOCK = "shards", "entries", "whole", "whole.old", "finish.lock"
_CLAIM = "merge.json"
_BESIDE = "beside"


class PartsFolder:
    """The folder of the parts of `output`, which need not be there."""

    def __init__(self, output: str) -> None:
        self.output = without_slash(output)
        self.path = self.output + _ENDING
        self._whole = os.path.join(self.path, _WHOLE)
        self._lock = os.path.join(self.path, _LOCK)

    def is_there(self) -> bool:
        """Return True if the folder exists."""
        return os.path.isdir(self.path)

    def check(self, inputs: Collection[str]) -> None:
        """Raise LoraInspectError if the parts cannot be there, or something is in their place."""
        check_output(self.path, inputs, force=True, folder=True)
        # What a link leads to is not ours to write to, and may be the base.
        known = {_CLAIM: _is_file, _LOCK: _is_file, **dict.fromkeys((_SHARDS, _ENTRIES, _WHOLE, _OLD), _is_folder)}
        for name in sorted(os.listdir(self.path)) if self.is_there() else []:
            is_own = known.get(name)
            if not (is_own(os.path.join(self.path, name)) if is_own else is_leftover(name)):
                raise WouldOverwriteError(
                    self.path, f"it holds {name}, which does not belong to a merge", "move it, or choose another output"
                )

    @property
    def claim(self) -> str:
        """The path of the file that names the merge that the parts belong to."""
        return os.path.join(self.path, _CLAIM)

    def make(self, claim: bytes) -> None:
        """Make the folder if it is missing, and claim it with these words if nobody has.

        Raises LoraInspectError if the disk refuses.
        """
        with refusing(self.path):
            try:
                self._make_claimed(claim)
            except LoraInspectError:
                if self.is_there():
                    raise
                self._make_claimed(claim)  # another run took the empty folder for the last of a merge that is done
            # Whoever removes the parts of a merge that is done removes its claim last.
            for name in (_SHARDS, _ENTRIES):
                os.makedirs(os.path.join(self.path, name), exist_ok=True)

    def _make_claimed(self, claim: bytes) -> None:
        os.makedirs(self.path, exist_ok=True)
        # A claim takes its name in one step, and the first one keeps it.
        if not os.path.lexists(self.claim):
            with suppress(WouldOverwriteError, FileExistsError):
                self._write(self.claim, claim, force=False)

    def notes(self) -> list[str]:
        """Return a note for other commands with the same output: a sentence if there are parts."""
        try:
            names = os.listdir(os.path.join(self.path, _ENTRIES))
        except OSError:
            return []
        whole = counted(sum(name.endswith(_ENTRY) for name in names), "shard")
        return [
            f"{self.path}: it holds {whole} of an unfinished merge by several jobs; repeat the missing jobs, or "
            "remove it."
        ]

    def new(self, name: str) -> str:
        """Return the path to write a file of that name; leftovers of runs that died are removed."""
        path = os.path.join(self.path, _SHARDS, name)
        remove_leftovers(path)
        return path

    def file(self, name: str) -> str:
        """Return the path of the file of that name, if it exists."""
        new = os.path.join(self.path, _SHARDS, name)
        return new if os.path.exists(new) else os.path.join(self._whole, name)

    def entry(self, name: str) -> str:
        """Return the path of a file's record."""
        return os.path.join(self.path, _ENTRIES, name + _ENTRY)

    def write_entry(self, name: str, content: bytes) -> None:
        """Write the record of a complete file."""
        path = self.entry(name)
        remove_leftovers(path)
        self._write(path, content, force=True)

    @contextmanager
    def finishing(self) -> Iterator[bool]:
        """Yield True in a block in which no other process finishes, if this one may; False otherwise.

        It may finish if no other process does and something is left to do. In a file system without locks every process
        may.
        """
        descriptor = self._open_lock()
        try:
            is_ours = descriptor is not None and lock(descriptor) is not False and is_at(descriptor, self._lock)
            if is_ours:
                self._put_back()
            yield is_ours
        finally:
            if descriptor is not None:
                close_locked(descriptor)

    def gather(self, names: Collection[str]) -> str:
        """Move all files into one folder, each under its own name, and return that folder."""
        with suppress(FileExistsError):
            os.mkdir(self._whole)
        for name in names:
            with suppress(FileNotFoundError):  # it is there already
                os.replace(os.path.join(self.path, _SHARDS, name), os.path.join(self._whole, name))
        return self._whole

    @contextmanager
    def side_folder(self) -> Iterator[str]:
        """Yield a folder to fill; its content then moves into the whole one."""
        place = os.path.join(self.path, _BESIDE)
        remove_leftovers(place)
        with claimed(place) as folder:
            os.mkdir(folder)
            yield folder
            for parent, folders, names in os.walk(folder):
                target = os.path.join(self._whole, os.path.relpath(parent, folder))
                for name in folders:
                    os.makedirs(os.path.join(target, name), exist_ok=True)
                for name in names:
                    os.replace(os.path.join(parent, name), os.path.join(target, name))

    def take_place(
        self, names: Collection[str], folders: Collection[str], inputs: Mapping[str, Identity], force: bool
    ) -> None:
        """Give the whole folder, which holds `names` and `folders`, the name of the output."""
        check_replaceable(self._whole, names, folders)
        with refusing(self.output):
            take_place(self._whole, self.output, inputs, force)

    def has_shards(self, names: Collection[str]) -> bool:
        """Return True if a file of one of these names exists."""
        return any(os.path.lexists(self.file(name)) for name in names)

    def remove_empty(self) -> None:
        """Remove the folder if it is empty: a process may have died before the last step of `remove`."""
        with suppress(OSError):
            os.rmdir(self.path)

    def remove(self) -> str | None:
        """Remove the whole folder, its claim last; return a sentence if something stays."""
        with suppress(OSError):  # another process may have removed all of it
            left = [name for name in os.listdir(self.path) if is_leftover(name)]
            for name in (_ENTRIES, _SHARDS, _WHOLE, _OLD, *left):
                shutil.rmtree(os.path.join(self.path, name), ignore_errors=True)
            for name in left:
                with suppress(OSError):  # it was a folder
                    os.unlink(os.path.join(self.path, name))
        for path in (self._lock, self.claim):
            with suppress(OSError):
                os.unlink(path)
        try:
            os.rmdir(self.path)
        except OSError as error:
            if os.path.lexists(self.claim):  # by another merge, which has just begun
                return None
            return (
                f"{self.path}: the output is complete, but lora-inspect cannot remove this ({error.strerror}); "
                "remove it."
            )
        return None

    def _write(self, path: str, content: bytes, force: bool) -> None:
        with new_file(path, force=force) as descriptor, open(descriptor, "wb", closefd=False) as handle:
            handle.write(content)

    def _open_lock(self) -> int | None:
        """Return a descriptor of the lock file; None if the folder no longer exists."""
        while True:
            try:
                return create(self._lock)
            except FileExistsError:
                with suppress(FileNotFoundError):  # whoever has finished has just removed it
                    return open_itself(self._lock)
            except FileNotFoundError:
                return None

    def _put_back(self) -> None:
        """Restore a folder that was being replaced when the process died, if that takes two steps."""
        old = os.path.join(self.path, _OLD)
        if os.path.lexists(old) and not os.path.lexists(self.output):
            rename_new(old, self.output)


def _is_folder(path: str) -> bool:
    return _is_itself(path, os.path.isdir)


def _is_file(path: str) -> bool:
    return _is_itself(path, os.path.isfile)


def _is_itself(path: str, is_kind: Callable[[str], bool]) -> bool:
    """Return True if the path is of a kind and not a link, or does not exist since another process removed it."""
    return not os.path.lexists(path) or (is_kind(path) and not os.path.islink(path))
