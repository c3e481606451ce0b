"""All pairs of a product are among its quick tests, and these are few."""

import itertools

import pytest
from pairs import covering, crossed


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (5, 4, 3), (12, 2, 2, 9), (7, 1, 7)], ids=str)
def test_every_two_values_of_two_axes_come_together(sizes):
    found = covering(sizes)
    assert len(found) == len(set(found))
    for one, other in itertools.combinations(range(len(sizes)), 2):
        due = set(itertools.product(range(sizes[one]), range(sizes[other])))
        assert {(numbers[one], numbers[other]) for numbers in found} == due
    assert {numbers[0] for numbers in found} == set(range(sizes[0]))


def test_they_are_few():
    assert len(covering((12, 2, 2, 9))) <= 1.2 * 12 * 9
    assert len(covering((5, 2, 2, 2))) <= 12


def test_of_axes_that_know_nothing_of_each_other_each_value_comes_once():
    found = covering((6, 55), together=1)
    assert len(found) == 55
    assert [{numbers[place] for numbers in found} for place in (0, 1)] == [set(range(6)), set(range(55))]
    # The values of the shorter axis take turns.
    assert {len([one for one in found if one[0] == number]) for number in range(6)} <= {9, 10}


def test_what_is_beside_the_pairs_is_slow():
    names, cases = crossed(letter="abc", number=[1, 2, 3], name={"x": 7, "y": 8, "z": 9}).mark.args
    assert names == ("letter", "number", "name")
    assert len(cases) == 27
    assert cases[0].id == "a-1-x"
    assert cases[0].values == ("a", 1, 7)
    assert len([case for case in cases if not case.marks]) == len(covering((3, 3, 3))) < 14
    assert {mark.name for case in cases for mark in case.marks} == {"slow"}
