"""Regular expressions from a file, matched in a bounded number of steps for any expression and any names.

Python tries one way through an expression after another, which takes years for some expressions of ten letters. This
automaton follows all ways at once, and computes the successors of a set of places once. An accepted expression means
the same as in Python. The parser refuses expressions that no program writes into a config, and expressions that hang
programs in Python. `Steps` is the budget for comparing patterns of a file with the names of its modules.
"""

import re
from collections.abc import Callable, Iterator
from typing import Literal

from lora_inspect.fast_namedtuple import NamedTuple

# A step takes 25 to 55 ns on the processors it was measured on.
_ALL = 20_000_000


class Refused(ValueError):
    """A pattern that is not compared with names, and why."""


class Steps:
    """The budget left for the patterns of one file: about a second at most."""

    def __init__(self, left: int = _ALL) -> None:
        self._left = left

    def take(self, count: int) -> None:
        """Count steps before they are taken; raises Refused if they are too many."""
        self._left -= count
        if self._left < 0:
            raise Refused("takes too long to compare with all module names, together with the others")


# Letters of an expression when its repeats are written out, and groups within groups.
_LARGEST, _DEEPEST = 1_000, 20
_TOO_LARGE = f"has more than {_LARGEST:,} letters when its repeats are written out"
# Spellings, compiled at their first use: this file is loaded for every adapter, few of which have an expression. The
# digits are those of ASCII: around others, brackets stand for themselves.
_QUANTIFIER = r"[*+?]|\{([0-9]*)(,?)([0-9]*)\}"
_GROUP = r"\((?:\?:|\?P<[A-Za-z_]\w*>)?(?!\?)"
_CLASS = r"(?s:\[\^?\]?(?:\\.|[^\\\]])*\])"
# Spellings inside of a class that Python warns of, as they are to mean something else.
_DOUBTFUL = r"\[|--|&&|\|\||~~"
_ASCII_LETTERS_THAT_ARE_CLASSES = frozenset("dDwWsSntrfva")


class Letter(NamedTuple):
    """One character: itself, or an expression for several."""

    source: str


class Boundary(NamedTuple):
    """A place between characters, by its spelling."""

    source: str


class Sequence(NamedTuple):
    """Parts that follow each other."""

    parts: "tuple[Node, ...]"


class Branches(NamedTuple):
    """Branches; one of them has to match."""

    branches: "tuple[Node, ...]"


class Repeat(NamedTuple):
    """A part from `least` to `most` times; None is without an end."""

    body: "Node"
    least: int
    most: int | None


Node = Letter | Boundary | Sequence | Branches | Repeat


def read_expression(source: str) -> Node:
    """Return the parts of an expression. Raises Refused for one that is not read."""
    node = _Parser(source).read()
    if _size(node) > _LARGEST:
        raise Refused(_TOO_LARGE)
    try:
        re.compile(source)
    except (re.error, OverflowError) as error:
        raise Refused(f"is not a regular expression ({error})") from None
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
        return branches[0] if len(branches) == 1 else Branches(tuple(branches))

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
        return Boundary(source[at]) if source[at] in "^$" else Letter(source[at])

    def _group(self) -> Node:
        opening = re.compile(_GROUP).match(self._source, self._at)
        if opening is None:
            raise Refused(
                f"holds {self._source[self._at : self._at + 4]}, a kind of group that lora-inspect does not read"
            )
        self._at, self._depth = opening.end(), self._depth + 1
        if self._depth > _DEEPEST:
            raise Refused(f"nests more than {_DEEPEST} groups")
        node = self._choice()
        if not self._source.startswith(")", self._at):
            raise Refused("opens a bracket that is not closed")
        self._at, self._depth = self._at + 1, self._depth - 1
        return node

    def _class(self) -> Node:
        found = re.compile(_CLASS).match(self._source, self._at)
        if found is None:
            raise Refused("opens a bracket that is not closed")
        if re.compile(_DOUBTFUL).search(found[0], 1):
            raise Refused(f"holds {found[0]}, a class that lora-inspect does not read")
        self._at = found.end()
        return Letter(found[0])

    def _escape(self) -> Node:
        escape = self._source[self._at : self._at + 2]
        self._at += 2
        letter = escape[1:]
        if letter.isdigit():
            raise Refused(f"holds {escape}, a backreference")
        if letter in ("b", "A", "Z"):
            return Boundary(escape)
        if not letter or (letter.isascii() and letter.isalpha() and letter not in _ASCII_LETTERS_THAT_ARE_CLASSES):
            raise Refused(f"holds {escape}, an escape that lora-inspect does not read")
        return Letter(escape)

    def _repeated(self, item: Node) -> Node:
        found = re.compile(_QUANTIFIER).match(self._source, self._at)
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
        if most != 1 and _any(item, lambda part: isinstance(part, Branches)):
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
    return node.parts if isinstance(node, Sequence) else node.branches if isinstance(node, Branches) else ()


def _any(node: Node, holds: Callable[[Node], bool]) -> bool:
    return holds(node) or any(_any(part, holds) for part in _parts_of(node))


def _size(node: Node) -> int:
    """Return the number of letters with all repeats written out; an empty group counts like a letter."""
    size = max(1, sum(map(_size, _parts_of(node))))
    return size * max(node.least, node.most or 1) if isinstance(node, Repeat) else size


# Characters of an expression.
_LONGEST = 1_000
# Steps of what is done beside following a known letter, which is one.
_EXPRESSION, _CHARACTER, _CALL, _TRANSITION, _PLACE, _STATE = 4_000, 300, 20, 80, 15, 500
# What is read where a path ends, and a line break that nothing follows: `$` stands before either.
_END, _LAST_BREAK = "", "\n$"
Reach = Literal["whole", "end", "anywhere"]

_BREAK = Repeat(Letter(r"\n"), 0, 1)
_UP_TO_A_DOT = Repeat(Sequence((Repeat(Letter("."), 0, None), Letter(r"\."))), 0, 1)
_ANYTHING = Repeat(Letter(r"[\s\S]"), 0, None)
# What stands before and after an expression that has to match the whole text, the end of a dotted path as PEFT
# sees it (`(.*\.)?(KEY)$`), or any part of the text.
_AROUND: dict[Reach, tuple[tuple[Node, ...], tuple[Node, ...]]] = {
    "whole": ((), ()),
    "end": ((_UP_TO_A_DOT,), (_BREAK,)),
    "anywhere": ((_ANYTHING,), (_ANYTHING,)),
}


class Expression:
    """An expression as Python's `re` reads it; raises Refused for one that is not matched."""

    def __init__(self, source: str, reach: Reach, steps: Steps) -> None:
        if len(source) > _LONGEST:
            raise Refused(f"has {len(source):,} characters, and lora-inspect reads at most {_LONGEST:,}")
        steps.take(_EXPRESSION + _CHARACTER * len(source))
        node = read_expression(source)
        before, after = _AROUND[reach]
        self._start = _Automaton(Sequence((*before, node, *after)), steps).start
        self._steps = steps

    def matches(self, text: str) -> bool:
        """Return True if the text matches; raises Refused if the steps are spent."""
        self._steps.take(_CALL + len(text))
        state = self._start
        body, last = (text[:-1], _LAST_BREAK) if text.endswith("\n") else (text, None)
        for letter in body:
            state = state[letter]
        if last:
            state = state[last]
        return bool(state[_END].places)


class _Part(NamedTuple):
    """A part of the automaton: where it begins and ends, as sets of places in bits, and whether it may be skipped."""

    first: int
    last: int
    empty: bool


class _Automaton:
    """The letters and places of an expression, and which may follow which.

    Source: Glushkov's construction. Sets are the bits of a whole number.
    """

    def __init__(self, node: Node, steps: Steps) -> None:
        self.steps = steps
        self._holds: list[Callable[[str | None, str], object]] = []
        self._follow: list[int] = []
        self._is_place: list[bool] = []
        self._states: dict[tuple[int, str | None], _State] = {}
        whole = self._build(node)
        end = self._add(lambda left, symbol: symbol == _END, is_place=False)
        self._link(whole.last, end)
        self._link(end, end)
        self.start = self.state(whole.first | (end if whole.empty else 0), None)

    def state(self, places: int, left: str | None) -> "_State":
        """Return the one state of these places after the symbol `left`; only its kind counts, if places look at it."""
        before = _kind(left) if any(self._is_place) else None
        known = self._states.get((places, before))
        if known is None:
            self.steps.take(_STATE)
            known = self._states[places, before] = _State(self, places, before)
        return known

    def after(self, places: int, before: str | None, symbol: str) -> int:
        """Return the places that may come after `symbol` at one of `places`."""
        self.steps.take(_TRANSITION)
        following = seen = 0
        while places:
            bit = places & -places
            place = bit.bit_length() - 1
            places ^= bit
            seen |= bit
            self.steps.take(_PLACE)
            if self._holds[place](before, symbol):
                if self._is_place[place]:
                    places |= self._follow[place] & ~seen
                else:
                    following |= self._follow[place]
        return following

    def _add(self, holds: Callable[[str | None, str], object], is_place: bool) -> int:
        self._holds.append(holds)
        self._follow.append(0)
        self._is_place.append(is_place)
        return 1 << (len(self._holds) - 1)

    def _link(self, last: int, first: int) -> None:
        for place in _bits(last):
            self.steps.take(_PLACE)
            self._follow[place] |= first

    def _build(self, node: Node) -> _Part:
        if isinstance(node, Letter):
            bit = self._add(_letter_test(node.source), is_place=False)
            return _Part(bit, bit, False)
        if isinstance(node, Boundary):
            bit = self._add(_PLACE_TESTS[node.source], is_place=True)
            return _Part(bit, bit, False)
        if isinstance(node, Branches):
            whole = _Part(0, 0, False)
            for branch in map(self._build, node.branches):
                whole = _Part(whole.first | branch.first, whole.last | branch.last, whole.empty or branch.empty)
            return whole
        if isinstance(node, Repeat):
            return self._repeat(node)
        whole = _Part(0, 0, True)
        for item in node.parts:
            whole = self._joined(whole, self._build(item))
        return whole

    def _repeat(self, node: Repeat) -> _Part:
        whole = _Part(0, 0, True)
        copies = max(node.least, node.most if node.most is not None else 1)
        for number in range(copies):
            part = self._build(node.body)
            if node.most is None and number == copies - 1:
                self._link(part.last, part.first)
            whole = self._joined(whole, part._replace(empty=part.empty or number >= node.least))
        return whole

    def _joined(self, left: _Part, right: _Part) -> _Part:
        self._link(left.last, right.first)
        return _Part(
            left.first | (right.first if left.empty else 0),
            right.last | (left.last if right.empty else 0),
            left.empty and right.empty,
        )


class _State(dict[str, "_State"]):
    """The places that a match may have reached, and the following states by symbol, each computed when it is met."""

    __slots__ = ("_automaton", "_before", "places")

    def __init__(self, automaton: _Automaton, places: int, before: str | None) -> None:
        self._automaton, self.places, self._before = automaton, places, before

    def __missing__(self, symbol: str) -> "_State":
        places = self._automaton.after(self.places, self._before, symbol)
        following = self[symbol] = self._automaton.state(places, symbol)
        return following


def _bits(places: int) -> Iterator[int]:
    while places:
        bit = places & -places
        yield bit.bit_length() - 1
        places ^= bit


def _letter_test(source: str) -> Callable[[str | None, str], object]:
    if len(source) == 1 and source != ".":
        return lambda before, symbol: symbol[:1] == source
    match = re.compile(source).fullmatch
    return lambda before, symbol: match(symbol[:1])


_WORD, _NO_WORD = "word", "no word"


def _kind(symbol: str | None) -> str | None:
    """Return the kind of a character, letter of a word or not; None for the beginning of the text."""
    if symbol is None:
        return None
    return _WORD if symbol.isalnum() or symbol == "_" else _NO_WORD


_PLACE_TESTS: dict[str, Callable[[str | None, str], object]] = {
    "^": lambda before, symbol: before is None,
    r"\A": lambda before, symbol: before is None,
    "$": lambda before, symbol: symbol in (_END, _LAST_BREAK),
    r"\Z": lambda before, symbol: symbol == _END,
    r"\b": lambda before, symbol: (before == _WORD) != (_kind(symbol) == _WORD),
}
