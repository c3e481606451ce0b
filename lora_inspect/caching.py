"""Bounded caches for functions of tensor names, shared by the files of one family."""

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from typing import Concatenate, Generic, ParamSpec, TypeVar, cast

_Others = ParamSpec("_Others")
_Found = TypeVar("_Found")
_Key = TypeVar("_Key", bound=Hashable)

# Together they bound what is kept, as a file may have any number of names of any length.
MOST_NAMES, LONGEST_NAME = 1 << 15, 256


def remembering(find: Callable[Concatenate[str, _Others], _Found]) -> Callable[Concatenate[str, _Others], _Found]:
    """Cache a function of a name and of hashable arguments, for names of bounded length.

    The result must depend on the arguments only.
    """
    kept = lru_cache(maxsize=MOST_NAMES)(find)

    @wraps(find)
    def ask(name: str, *others: _Others.args, **named: _Others.kwargs) -> _Found:
        if len(name) > LONGEST_NAME:
            return find(name, *others, **named)
        return kept(name, *others, **named)  # type: ignore[arg-type]

    return cast(Callable[Concatenate[str, _Others], _Found], ask)


class _ByName(dict[str, _Found]):
    def __init__(self, find: Callable[[str], _Found]) -> None:
        self._find = find

    def __missing__(self, name: str) -> _Found:
        found = self._find(name)
        if len(name) <= LONGEST_NAME:
            if len(self) >= MOST_NAMES:
                self.clear()
            self[name] = found
        return found


def remembering_names(find: Callable[[str], _Found]) -> Callable[[str], _Found]:
    """Cache a function of a name alone, as `remembering` does, with a look-up that takes a quarter of the time."""
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
