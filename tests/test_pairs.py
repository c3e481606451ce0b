"""All pairs of a product are among its quick tests, and these are few."""

import itertools

import pytest
from pairs import all_pairs, crossed


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (5, 4, 3), (12, 2, 2, 9), (7, 1, 7)], ids=str)
def test_every_two_values_of_two_axes_come_together(sizes):
    found = all_pairs(sizes)
    assert len(found) == len(set(found))
    for one, other in itertools.combinations(range(len(sizes)), 2):
        due = set(itertools.product(range(sizes[one]), range(sizes[other])))
        assert {(numbers[one], numbers[other]) for numbers in found} == due
    assert {numbers[0] for numbers in found} == set(range(sizes[0]))


def test_they_are_few():
    assert len(all_pairs((12, 2, 2, 9))) <= 1.2 * 12 * 9


def test_what_is_beside_the_pairs_is_slow():
    mark = crossed(letter="abc", number=[1, 2, 3], name={"x": 7, "y": 8, "z": 9}).mark
    names, cases = mark.args
    assert names == ("letter", "number", "name")
    assert len(cases) == 27
    assert cases[0].id == "a-1-x"
    assert cases[0].values == ("a", 1, 7)
    assert len([case for case in cases if not case.marks]) == len(all_pairs((3, 3, 3))) < 14
    assert {mark.name for case in cases for mark in case.marks} == {"slow"}
