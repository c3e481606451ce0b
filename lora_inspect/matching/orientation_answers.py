"""What `--transposed [GLOB=]yes|no` says of the weights whose orientation the evidence leaves open."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lora_inspect.reading.base.base_names import leaf_of

# Whether the base stores weights as (in, out), by a glob over their paths or last names; the first that fits decides.
Answers = Mapping[str, bool]
UNANSWERED: Answers = MappingProxyType({})

# The glob of an answer without one.
_ALL = "*"
_WORDS = {"yes": True, "no": False}


def parse_answers(texts: Sequence[str]) -> Answers:
    """The answers in the order of their writing, the plain one last; ValueError for what is none, or said twice."""
    answers: dict[str, bool] = {}
    for text in texts:
        glob, equals, word = text.rpartition("=")
        if word not in _WORDS or (equals and not glob):
            raise ValueError(f"{text!r} is neither yes or no nor GLOB=yes or GLOB=no")
        glob = glob or _ALL
        if glob in answers:
            raise ValueError(f"{text!r} says again what was said of {glob}")
        answers[glob] = _WORDS[word]
    return {glob: answers[glob] for glob in sorted(answers, key=lambda glob: glob == _ALL)}


def deciding_glob(answers: Answers, path: str) -> str | None:
    """The glob whose answer speaks of the weight of a path, None where none does."""
    from fnmatch import fnmatchcase  # most modules are asked of no glob

    return next((glob for glob in answers if fnmatchcase(path, glob) or fnmatchcase(leaf_of(path), glob)), None)


def spell_answer(glob: str, stored: bool) -> str:
    """One answer as it is written on the command line."""
    word = "yes" if stored else "no"
    return f"--transposed {word}" if glob == _ALL else f"--transposed {glob}={word}"
