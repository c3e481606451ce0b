"""What a regular expression is made of, as Python's `re` reads it. Refused is what no program writes into a config, and
what programs that go by Python hang on.
"""

import re
from collections.abc import Callable

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.peft.match_budget import Refused

# Letters of an expression when its repeats are written out, and groups within groups.
_LARGEST, _DEEPEST = 1_000, 20
_TOO_LARGE = f"has more than {_LARGEST:,} letters when its repeats are written out"
# Its digits are those of ASCII: around others, brackets stand for themselves.
_QUANTIFIER = re.compile(r"[*+?]|\{([0-9]*)(,?)([0-9]*)\}")
_GROUP = re.compile(r"\((?:\?:|\?P<[A-Za-z_]\w*>)?(?!\?)")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\\\]])*\]", re.DOTALL)
# Spellings inside of a class that Python warns of, as they are to mean something else.
_DOUBTFUL = re.compile(r"\[|--|&&|\|\||~~")
_ASCII_LETTERS_THAT_ARE_CLASSES = frozenset("dDwWsSntrfva")


class Letter(NamedTuple):
    """One character: itself, or an expression for several."""

    source: str


class Place(NamedTuple):
    """A place between characters, by its spelling."""

    source: str


class Sequence(NamedTuple):
    """Parts that follow each other."""

    parts: "tuple[Node, ...]"


class Choice(NamedTuple):
    """Branches of which one has to match."""

    branches: "tuple[Node, ...]"


class Repeat(NamedTuple):
    """A part from `least` to `most` times; None is without an end."""

    body: "Node"
    least: int
    most: int | None


Node = Letter | Place | Sequence | Choice | Repeat


def read_expression(source: str) -> Node:
    """The parts of an expression; raises Refused for one that is not read."""
    node = _Parser(source).read()
    if _size(node) > _LARGEST:
        raise Refused(_TOO_LARGE)
    try:
        re.compile(source)
    except (re.error, OverflowError) as error:
        raise Refused(f"is no regular expression ({error})") from None
    return node


class _Parser:
    """From the text of an expression to its parts."""

    def __init__(self, source: str) -> None:
        self._source, self._at, self._depth = source, 0, 0

    def read(self) -> Node:
        node = self._choice()
        if self._at < len(self._source):
            raise Refused("closes a bracket that is not open")
        return node

    def _choice(self) -> Node:
        branches = [self._sequence()]
        while self._source.startswith("|", self._at):
            self._at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self) -> Node:
        parts = []
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            parts.append(self._repeated(self._item()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _item(self) -> Node:
        source, at = self._source, self._at
        if source[at] == "(":
            return self._group()
        if source[at] == "[":
            return self._class()
        if source[at] == "\\":
            return self._escape()
        self._at += 1
        return Place(source[at]) if source[at] in "^$" else Letter(source[at])

    def _group(self) -> Node:
        opening = _GROUP.match(self._source, self._at)
        if opening is None:
            raise Refused(f"holds {self._source[self._at : self._at + 4]}, a group of a kind that is not read")
        self._at, self._depth = opening.end(), self._depth + 1
        if self._depth > _DEEPEST:
            raise Refused(f"has groups within groups, more than {_DEEPEST}")
        node = self._choice()
        if not self._source.startswith(")", self._at):
            raise Refused("opens a bracket that is not closed")
        self._at, self._depth = self._at + 1, self._depth - 1
        return node

    def _class(self) -> Node:
        found = _CLASS.match(self._source, self._at)
        if found is None:
            raise Refused("opens a bracket that is not closed")
        if _DOUBTFUL.search(found[0], 1):
            raise Refused(f"holds {found[0]}, a class that is not read")
        self._at = found.end()
        return Letter(found[0])

    def _escape(self) -> Node:
        escape = self._source[self._at : self._at + 2]
        self._at += 2
        letter = escape[1:]
        if letter.isdigit():
            raise Refused(f"holds {escape}, a backreference")
        if letter in ("b", "A", "Z"):
            return Place(escape)
        if not letter or (letter.isascii() and letter.isalpha() and letter not in _ASCII_LETTERS_THAT_ARE_CLASSES):
            raise Refused(f"holds {escape}, an escape that is not read")
        return Letter(escape)

    def _repeated(self, item: Node) -> Node:
        found = _QUANTIFIER.match(self._source, self._at)
        if found is None or found[0] == "{}":
            return item
        self._at = found.end()
        if self._source.startswith("?", self._at):
            self._at += 1  # as few as can be: another order of trying, the same answer
        elif self._source.startswith("+", self._at):
            raise Refused("repeats a repeat")
        least, most = _bounds(found)
        if most is None and _any(item, lambda part: isinstance(part, Repeat) and part.most is None):
            raise Refused("has an unbounded repeat inside of another one")
        if most != 1 and _any(item, lambda part: isinstance(part, Choice)):
            raise Refused("has an alternation under a repeat")
        return Repeat(item, least, most)


def _bounds(quantifier: re.Match[str]) -> tuple[int, int | None]:
    if quantifier[0][0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[quantifier[0]]
    least, comma, most = quantifier.groups()
    if max(len(least), len(most)) > len(str(_LARGEST)):
        raise Refused(_TOO_LARGE)
    fewest = int(least or 0)
    return fewest, int(most) if most else None if comma else fewest


def _parts_of(node: Node) -> "tuple[Node, ...]":
    if isinstance(node, Repeat):
        return (node.body,)
    return node.parts if isinstance(node, Sequence) else node.branches if isinstance(node, Choice) else ()


def _any(node: Node, holds: Callable[[Node], bool]) -> bool:
    return holds(node) or any(_any(part, holds) for part in _parts_of(node))


def _size(node: Node) -> int:
    """Letters with all repeats written out; an empty group is made like a letter, so it counts like one."""
    size = max(1, sum(map(_size, _parts_of(node))))
    return size * max(node.least, node.most or 1) if isinstance(node, Repeat) else size
