"""The keys of a file, searched for the parts by which programs tell what it is, and the loader that reads it."""

from collections.abc import Iterable
from functools import cached_property

from lora_inspect.programs.record import Consumer, Loader, Reads


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


def loader_for(consumer: Consumer, family: str, keys: FramedKeys) -> Loader | None:
    """The loader that reads a file with these keys into a model of the family, "" for an unknown one."""
    at = _place_of_loader(consumer, family, keys)
    return None if at is None else consumer.loaders[at]


def has_loader_for(consumer: Consumer, family: str, keys: FramedKeys) -> bool:
    """Whether there is one."""
    return _place_of_loader(consumer, family, keys) is not None


def _place_of_loader(consumer: Consumer, family: str, keys: FramedKeys) -> int | None:
    return next((at for at, one in enumerate(consumer.reads) if _reads(one, family, keys)), None)


def _reads(loader: Reads | Loader, family: str, keys: FramedKeys) -> bool:
    if loader.families and family not in loader.families:
        return False
    has_marks = keys.each_hold if loader.all_marked else keys.hold
    return not loader.marks or has_marks(loader.marks)
