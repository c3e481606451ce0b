"""Tests over several axes: in the quick run every two values of two axes come together, in the slow one all do.

What two values do to each other is nearly all that goes wrong in such a table; the rest of the product is marked slow.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest


def crossed(**axes: Mapping[str, Any] | Iterable[Any]) -> Callable[[Any], Any]:
    """A parametrisation of a test over the product of its axes, each of values or of values by their names."""
    named = [
        dict(axis) if isinstance(axis, Mapping) else {_id(value): value for value in axis} for axis in axes.values()
    ]
    quick = set(all_pairs([len(axis) for axis in named]))
    cases = []
    for numbers in itertools.product(*(range(len(axis)) for axis in named)):
        items = [list(axis.items())[number] for axis, number in zip(named, numbers, strict=True)]
        marks = () if numbers in quick else (pytest.mark.slow,)
        cases.append(pytest.param(*(value for _, value in items), id="-".join(name for name, _ in items), marks=marks))
    return pytest.mark.parametrize(tuple(axes), cases)


def _id(value: Any) -> str:
    return str(getattr(value, "__name__", value))


def all_pairs(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Combinations of numbers below the sizes in which every two numbers of two places come together."""
    places = range(len(sizes))
    waiting = {
        (one, a, other, b)
        for one, other in itertools.combinations(places, 2)
        for a, b in itertools.product(range(sizes[one]), range(sizes[other]))
    }
    found = []
    while waiting:
        one, a, other, b = min(waiting)
        chosen = {one: a, other: b}
        for place in places:
            if place not in chosen:
                chosen[place] = max(
                    range(sizes[place]), key=lambda number: len(_made({**chosen, place: number}) & waiting)
                )
        waiting -= _made(chosen)
        found.append(tuple(chosen[place] for place in places))
    return found or list(itertools.product(*map(range, sizes)))


def _made(chosen: Mapping[int, int]) -> set[tuple[int, int, int, int]]:
    return {(one, chosen[one], other, chosen[other]) for one, other in itertools.combinations(sorted(chosen), 2)}
