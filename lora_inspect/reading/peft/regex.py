"""Regular expressions out of a file, matched in a bounded number of steps whatever they and the names are.

Python tries one way through an expression after another, which takes years for some of ten letters. Here all ways are
followed at once, and what follows from a set of places is computed once. What is accepted means what it means to
Python.
"""

import re
from collections.abc import Callable, Iterator
from typing import Literal

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.peft.expression_syntax import Choice, Letter, Node, Place, Repeat, Sequence, read_expression
from lora_inspect.reading.peft.match_budget import Refused, Steps

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
            raise Refused(f"has {len(source):,} characters, and at most {_LONGEST:,} are read")
        steps.take(_EXPRESSION + _CHARACTER * len(source))
        node = read_expression(source)
        before, after = _AROUND[reach]
        self._start = _Automaton(Sequence((*before, node, *after)), steps).start
        self._steps = steps

    def matches(self, text: str) -> bool:
        """Whether it matches; raises Refused where the steps are spent."""
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
        """The one state of these places after the symbol `left`; only its kind counts, and only where places look."""
        before = _kind(left) if any(self._is_place) else None
        known = self._states.get((places, before))
        if known is None:
            self.steps.take(_STATE)
            known = self._states[places, before] = _State(self, places, before)
        return known

    def after(self, places: int, before: str | None, symbol: str) -> int:
        """The places that may come after `symbol`, which stands at one of `places`."""
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
        if isinstance(node, Place):
            bit = self._add(_PLACE_TESTS[node.source], is_place=True)
            return _Part(bit, bit, False)
        if isinstance(node, Choice):
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
    """The places at which a match may stand, and the states that follow by symbol, each computed when it is met."""

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
    """Whether letters of words stand there; None is where the text begins."""
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
