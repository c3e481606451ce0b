"""The keys of a file, searched for the parts by which programs tell what it is."""

from collections.abc import Iterable
from functools import cached_property


class FramedKeys:
    """Keys with `^` before and `$` behind each, so that a part may say where in a key it stands."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._framed = [f"^{key}$" for key in keys]

    def hold(self, marks: Iterable[str]) -> bool:
        """Whether one of the marks is in a key."""
        return any(mark in self._text for mark in marks)

    def each_hold(self, marks: Iterable[str]) -> bool:
        """Whether one of the marks is in each key."""
        left = self._framed
        for mark in marks:
            left = [key for key in left if mark not in key]
        return not left

    @cached_property
    def _text(self) -> str:
        """All of them: no mark has an end of a line in it, so that it is found in one key alone."""
        return "\n".join(self._framed)
