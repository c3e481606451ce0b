"""Tests over several axes: in the quick run every two values of two axes come together, in the slow one all do.

Nearly all that goes wrong in such a table comes of two values; the rest of the product is marked slow.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import pytest


def crossed(*, together: int = 2, **axes: Mapping[str, Any] | Collection[Any]) -> Callable[[Any], Any]:
    """A parametrisation of a test over the product of its axes, each of values or of values by their names.

    So many values of as many axes come `together` in the quick run: 1 is for axes that know nothing of each other.
    """
    named = [
        list(axis.items() if isinstance(axis, Mapping) else zip(map(_id, axis), axis, strict=True))
        for axis in axes.values()
    ]
    quick = set(covering([len(axis) for axis in named], together))
    cases = []
    for numbers in itertools.product(*(range(len(axis)) for axis in named)):
        names, values = zip(*(axis[number] for axis, number in zip(named, numbers, strict=True)), strict=True)
        marks = () if numbers in quick else (pytest.mark.slow,)
        cases.append(pytest.param(*values, id="-".join(names), marks=marks))
    return pytest.mark.parametrize(tuple(axes), cases)


def _id(value: Any) -> str:
    return str(getattr(value, "__name__", value))


def covering(sizes: Sequence[int], together: int = 2) -> list[tuple[int, ...]]:
    """Combinations of numbers below the sizes in which all numbers of so many places come together, whichever they are.

    Greedy: each combination begins with what is still missing and takes what else is.
    """
    together = min(together, len(sizes))
    waiting = dict.fromkeys(
        tuple(zip(places, numbers, strict=True))
        for places in itertools.combinations(range(len(sizes)), together)
        for numbers in itertools.product(*(range(sizes[place]) for place in places))
    )
    found, used = [], [[0] * size for size in sizes]
    while waiting:
        chosen = dict(next(iter(waiting)))
        for place in range(len(sizes)):
            if place not in chosen:
                numbers = sorted(range(sizes[place]), key=lambda number: used[place][number])
                chosen[place] = max(
                    numbers, key=lambda number: sum(one in waiting for one in _of(chosen | {place: number}, together))
                )
        for one in _of(chosen, together):
            waiting.pop(one, None)
        found.append(tuple(chosen[place] for place in range(len(sizes))))
        for place, number in chosen.items():
            used[place][number] += 1
    return found


def _of(chosen: Mapping[int, int], together: int) -> Iterable[tuple[tuple[int, int], ...]]:
    return itertools.combinations(sorted(chosen.items()), together)
