"""Records are what `typing.NamedTuple` makes of the same class, whatever they are asked, and however often."""

import copy
import pickle
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_inspect import fast_namedtuple


def classes():
    """One class, made anew in both ways."""

    def body(base):
        class Point(base):
            """A point."""

            x: int
            y: str
            z: float | None = None
            tags: tuple[str, ...] = ()

            @property
            def both(self) -> Any:
                return self.x, self.tags

            def moved(self) -> Any:
                return self._replace(x=self.x + 1)

            def __str__(self) -> str:
                return f"point {self.x}"

        return Point

    return body(fast_namedtuple.NamedTuple), body(NamedTuple)


class Kept(fast_namedtuple.NamedTuple):
    """At the top of a module, where pickles find it."""

    first: int
    second: str = "b"


class Empty(fast_namedtuple.NamedTuple):
    """Without fields."""


CALLS = [
    ((1, "b"), {}),
    ((1, "b", 2.0, ("t",)), {}),
    ((1,), {"y": "b"}),
    ((), {"y": "b", "x": 1}),
    ((1, "b"), {"tags": ("t",)}),
    ((1, "b", None), {"tags": ("t",)}),
    ((), {}),
    ((1,), {}),
    ((1, 2, 3, 4, 5), {}),
    ((1, "b"), {"x": 2}),
    ((1, "b"), {"w": 2}),
    ((1,), {"z": 2}),
    ((1, "b", 2.0, (), 7), {"x": 1}),
]


def outcome(call):
    try:
        return call()
    except (TypeError, ValueError) as error:
        return type(error), str(error)


@pytest.mark.parametrize(("values", "named"), CALLS)
@pytest.mark.parametrize("times", [1, fast_namedtuple._FEW, fast_namedtuple._FEW + 1, 3 * fast_namedtuple._FEW])
def test_calls_end_alike(values, named, times):
    ours, theirs = classes()
    for _ in range(times):
        assert outcome(lambda: ours(*values, **named)) == outcome(lambda: theirs(*values, **named))


@settings(max_examples=30)
@given(
    st.lists(st.integers(), max_size=6),
    st.dictionaries(st.sampled_from(["x", "y", "z", "tags", "w"]), st.integers(), max_size=5),
)
def test_all_calls_end_alike(values, named):
    ours, theirs = classes()
    expected = outcome(lambda: theirs(*values, **named))
    assert all(outcome(lambda: ours(*values, **named)) == expected for _ in range(fast_namedtuple._FEW + 2))


def test_what_a_record_can_do_is_alike():
    ours, theirs = (kind(1, "b", tags=("t",)) for kind in classes())
    for ask in (
        lambda one: one._fields,
        lambda one: one._field_defaults,
        lambda one: one.__match_args__,
        lambda one: one._asdict(),
        lambda one: one._replace(y="c", z=1.5),
        lambda one: type(one)._make([4, 5, 6, 7]),
        lambda one: outcome(lambda: type(one)._make([4, 5, 6])),
        lambda one: outcome(lambda: type(one)._make([4, 5, 6, 7, 8])),
        lambda one: outcome(lambda: one._replace(w=1, v=2, x=3))[1],
        lambda one: (one.x, one.y, one.z, one.tags, one.both, one[1:], len(one), list(one)),
        lambda one: one.moved(),
        lambda one: (str(one), repr(one)),
        lambda one: (hash(one), one == (1, "b", None, ("t",)), one < (2,), one[:1] * 2),
        lambda one: copy.copy(one) == one and copy.deepcopy(one) == one and type(copy.deepcopy(one)) is type(one),
        lambda one: (type(one).__doc__, type(one).__name__, type(one).__module__, type(one).__annotations__),
        lambda one: (isinstance(one, tuple), hasattr(one, "__dict__"), type(type(one)).__name__),
    ):
        assert ask(ours) == ask(theirs)


def test_fields_cannot_be_set():
    with pytest.raises(AttributeError):
        Kept(1).first = 2
    with pytest.raises(AttributeError):
        Kept(1).third = 2


def test_records_match_patterns():
    match Kept(1, "c"):
        case Kept(first, second="c"):
            assert first == 1
        case _:
            pytest.fail("it does not match")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_records_are_pickled(protocol):
    for one in (Kept(1), Kept(second="c", first=2), Empty()):
        found = pickle.loads(pickle.dumps(one, protocol))
        assert (found, type(found)) == (one, type(one))


def test_a_field_without_a_default_stands_in_front():
    with pytest.raises(TypeError, match="Wrong: "):

        class Wrong(fast_namedtuple.NamedTuple):
            x: int = 1
            y: int
