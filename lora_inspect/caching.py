"""Bounded caches for functions of tensor names, shared by the files of one family."""

from collections.abc import Callable, Hashable, Sized
from functools import lru_cache, wraps
from typing import Concatenate, Generic, ParamSpec, TypeVar, cast

_Others = ParamSpec("_Others")
_Found = TypeVar("_Found")
_Key = TypeVar("_Key", bound=Hashable)

# Together they bound what a cache of names keeps beside the names of open files: names may be many, and long.
MOST_NAMES, LONGEST_NAME = 1 << 15, 256
# A module is asked for under several names: its own, its path in each layout, those that programs look for.
_NAMES_OF_A_TENSOR = 4
# To count the open files takes longer than to look up a name.
_STEP = 1 << 10
# Of the arguments beside a name: they are the same for nearly all names of a file.
_MOST_VALUES = 8


class _OpenFiles(dict[int, int]):
    """The number of tensors of each open file, and their total, which is counted once after each change."""

    def __init__(self) -> None:
        # The mark changes after the numbers do, and a total is that of the mark which was read before it was counted.
        self._mark = object()
        self._counted: tuple[object, int] = (None, 0)

    def change(self, file: int, tensors: int | None) -> None:
        """Set the number of a file, or remove the file."""
        if tensors is None:
            self.pop(file, None)
        else:
            self[file] = tensors
        self._mark = object()

    @property
    def total(self) -> int:
        """The number of tensors of all open files."""
        mark, total = self._counted
        if mark is not self._mark:
            mark = self._mark
            total = sum(list(self.values()))  # a list, as other threads open files meanwhile
            self._counted = mark, total
        return total


_open_files = _OpenFiles()


class Room:
    """Room in each cache of names for a file with `tensors` tensors, as long as this object lives.

    Steps go through all names of a file in turn. A cache that is smaller than the file would have dropped each name
    before the next step asks for it.
    """

    __slots__ = ("_open",)

    def __init__(self, tensors: int) -> None:
        self._open = _open_files  # which the module may have lost when the interpreter ends
        self._open.change(id(self), tensors)

    def __del__(self) -> None:
        self._open.change(id(self), None)


def is_full(cache: Sized) -> bool:
    """Return True if a cache of names has no room for more; this is found out at every `_STEP` names."""
    size = len(cache)
    return size >= MOST_NAMES and not size % _STEP and size >= MOST_NAMES + _NAMES_OF_A_TENSOR * _open_files.total


class _ByName(dict[str, _Found]):
    def __init__(self, find: Callable[[str], _Found]) -> None:
        self._find = find

    def __missing__(self, name: str) -> _Found:
        found = self._find(name)
        if len(name) <= LONGEST_NAME:
            if is_full(self):
                self.clear()
            self[name] = found
        return found


def remembering(find: Callable[Concatenate[str, _Others], _Found]) -> Callable[Concatenate[str, _Others], _Found]:
    """Cache a function of a name and of a few values of hashable arguments, for names of bounded length.

    The result must depend on the arguments only.
    """

    @lru_cache(maxsize=_MOST_VALUES)
    def kept(*others: _Others.args, **named: _Others.kwargs) -> _ByName[_Found]:
        return _ByName(lambda name: find(name, *others, **named))

    @wraps(find)
    def ask(name: str, *others: _Others.args, **named: _Others.kwargs) -> _Found:
        return kept(*others, **named)[name]  # type: ignore[arg-type]

    return cast(Callable[Concatenate[str, _Others], _Found], ask)


def remembering_names(find: Callable[[str], _Found]) -> Callable[[str], _Found]:
    """Cache a function of only a name, as `remembering` does, with a look-up in a quarter of the time."""
    return _ByName(find).__getitem__


class Remembered(Generic[_Key, _Found]):
    """A cache of the last `most` results, each under a key that determines it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: dict[_Key, _Found] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: _Key) -> _Found | None:
        """Return the result under this key, or None."""
        found = self._found.pop(key, None)
        if found is not None:
            self._found[key] = found
        return found

    def put(self, key: _Key, found: _Found) -> None:
        """Store a result and drop the least recently used one."""
        self._found.pop(key, None)
        self._make_room()
        self._found[key] = found

    def of(self, key: _Key, make: Callable[[], _Found]) -> _Found:
        """Return the result under this key, or make and store it."""
        found = self.get(key)
        if found is None:
            self._make_room()
            found = self._found[key] = make()
        return found

    def _make_room(self) -> None:
        excess = len(self._found) - self._most + 1
        if excess > 0:
            # Other threads put and drop results meanwhile: the keys are listed at once, and one of them may be gone.
            for key in list(self._found)[:excess]:
                self._found.pop(key, None)
