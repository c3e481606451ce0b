"""Which of many changes make another meaning, found without trying each of them alone."""

from collections.abc import Callable, Sequence

from lora_inspect.fast_namedtuple import NamedTuple


class Told(NamedTuple):
    """The changes that make no other meaning, all of them together, and those that each would beside these."""

    harmless: list[str]
    deciding: list[str]


def tell_apart(changes: Sequence[str], keeps: Callable[[Sequence[str]], bool]) -> Told:
    """Tells changes apart by whether `keeps` says that the meaning stays under several of them.

    It is asked some twice the logarithm of their number for each one that decides.
    """
    told = Told([], [])
    waiting = [list(changes)] if changes else []
    while waiting:
        part = waiting.pop()
        if keeps([*told.harmless, *part]):
            told.harmless.extend(part)
        elif len(part) == 1:
            told.deciding.extend(part)
        else:
            half = len(part) // 2
            waiting += [part[half:], part[:half]]
    return told
