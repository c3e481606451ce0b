"""Which weights OneTrainer's scaled OFT may turn, and whose metadata say its divisor."""

import pytest

from lora_inspect.algorithms import by_name
from lora_inspect.algorithms.record import Surroundings

OFT = by_name("onetrainer_oft")
SHAPES = {"generators": (3, 6), "mark": ()}


@pytest.mark.parametrize(
    ("weight", "wrong"),
    [
        ((5, 12), None),
        ((5, 13), "rotates 3 blocks of 4 inputs"),
        ((5, 12, 1, 1), "turns a kernel in OneTrainer, which is the opposite rotation"),
        ((5, 3, 2, 2), "turns a kernel in OneTrainer, which is the opposite rotation"),
        ((12,), "rotates 3 blocks of 4 inputs"),
    ],
)
def test_linear_weights_alone_are_turned(weight, wrong):
    assert OFT.formula.misfit(SHAPES, weight) == wrong


@pytest.mark.parametrize("metadata", [{}, {"ot_branch": "scaled_oft"}, {"ot_branch": ""}, {"ot_revision": "c063836"}])
def test_another_branch_leaves_the_divisor_open(metadata):
    around = Surroundings("layer", (), None, metadata, None, False, SHAPES, numbers={"mark": 1.0})
    assert "does not name master as its ot_branch" in OFT.settings(around)


@pytest.mark.parametrize("mark", [0, 0.0, False, None, float("nan"), 2])
def test_a_mark_that_is_no_yes_leaves_it_open(mark):
    around = Surroundings("layer", (), None, {"ot_branch": "master"}, None, False, SHAPES, numbers={"mark": mark})
    assert "scaled_oft is not yes" in OFT.settings(around)
    assert OFT.settings(around._replace(numbers={"mark": True})) == {}


def test_a_mark_of_several_numbers_is_none():
    assert "not a single yes or no" in OFT.formula.check({**SHAPES, "mark": (2,)})
