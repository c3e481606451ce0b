"""Which files of a folder are wanted, and in which order: conditions on their fields, and what each field sorts by."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.sentences import listed

if TYPE_CHECKING:  # whose reading takes longer to load than all of this, and the options are made of this alone
    from lora_inspect.scanning.scan_file import ScannedFile


def number_in_words(number: float | None) -> str:
    """A scale as it is shown, and asked for."""
    return "unknown" if number is None else f"{number:.6g}"


# What a condition may be about: the words of a file under each key.
_WORDS: "dict[str, Callable[[ScannedFile], Iterable[str]]]" = {
    "name": lambda one: (one.path, re.split(r"[\\/]", one.path)[-1]),
    "model": lambda one: (*one.architectures, *one.model.split(" or ")),
    "type": lambda one: one.types,
    "rank": lambda one: map(str, one.ranks),
    "scale": lambda one: map(number_in_words, one.scales),
    "trainer": lambda one: (one.trainer or "unknown",),
    "scheme": lambda one: one.schemes,
    "kind": lambda one: (one.kind,),
    "state": lambda one: (one.state,),
    "problem": lambda one: one.codes,
    "note": lambda one: (one.note,),
}
# Without a name in the place of one that is not known; what has several sorts by the first of them.
_ORDERS: "dict[str, Callable[[ScannedFile], Any]]" = {
    "name": lambda one: (one.path.lower(), one.path),
    "model": lambda one: (not one.model, one.model.lower()),
    "type": lambda one: (not one.types, one.types),
    "rank": lambda one: (not one.ranks, one.ranks),
    "scale": lambda one: [(scale is None, scale or 0.0) for scale in one.scales] or [(True, 1.0)],
    "size": lambda one: one.bytes,
    "modified": lambda one: one.modified,
}
KEYS, ORDERS = tuple(_WORDS), tuple(_ORDERS)


class Condition(NamedTuple):
    """That one of the words under a key fits a pattern, in any case of its letters.

    A pattern without `*`, `?` and `[` fits what begins with it; of numbers it fits the same number.
    """

    key: str
    pattern: str

    def holds(self, one: "ScannedFile") -> bool:
        """Whether a file is wanted."""
        return any(self._fits(word) for word in _WORDS[self.key](one))

    def _fits(self, word: str) -> bool:
        from fnmatch import translate

        pattern, word = self.pattern.casefold(), word.casefold()
        if self.key in ("rank", "scale") and word != "unknown" and not _is_glob(pattern):
            return word == pattern
        return re.match(translate(pattern), word) is not None if _is_glob(pattern) else word.startswith(pattern)


def condition(text: str) -> Condition:
    """The condition that `KEY=PATTERN` states; raises LoraInspectError for any other text or key."""
    key, equals, pattern = text.partition("=")
    if not equals or key.lower() not in _WORDS:
        raise RefusedError(f"'{text}' is no condition KEY=VALUE; the keys are {listed(KEYS)}.")
    return Condition(key.lower(), pattern)


def sorting_key(order: str) -> "Callable[[ScannedFile], Any]":
    """What the files are sorted by in one of ORDERS."""
    return _ORDERS[order]


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")
