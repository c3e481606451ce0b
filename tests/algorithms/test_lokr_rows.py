"""Which rows of a product a stored number takes, and which weights they fit."""

import pytest

from lora_inspect.algorithms import by_name
from lora_inspect.algorithms.record import Surroundings

SHAPES = {"w1": (4, 3), "w2": (15, 4), "row_offset": ()}


def found(first):
    around = Surroundings("layer", (), None, {}, None, False, SHAPES, numbers={"row_offset": first})
    return by_name("lokr_rows").variant(around)


@pytest.mark.parametrize(
    ("first", "weight", "wrong"),
    [
        (0, (60, 12), None),
        (0, (20, 12), None),
        (40, (20, 12), None),
        (40.0, (1, 12), None),
        (40, (21, 12), "has the rows 40 to 60 of a product"),
        (0, (61, 12), "has the rows 0 to 60 of a product"),
        (40, (20, 13), "changes a weight of 20 rows and 12 columns"),
        (40, (20, 12, 3, 3), "changes a weight of 20 rows and 12 columns"),
        (40, (20,), "has the rows 40 to 60 of a product"),
    ],
)
def test_rows_fit_weights_that_have_so_many(first, weight, wrong):
    assert found(first).formula.misfit(SHAPES, weight) == wrong


@pytest.mark.parametrize("first", [60, -1, 0.5, float("nan"), float("inf"), None])
def test_a_number_that_is_no_row_leaves_them_open(first):
    assert "row_offset is not one of the 60 rows" in found(first)


def test_the_number_alone_makes_it_this_algorithm():
    assert by_name("lokr_rows").fits(SHAPES)
    assert not by_name("lokr").fits(SHAPES)
    without = {role: shape for role, shape in SHAPES.items() if role != "row_offset"}
    assert by_name("lokr").fits(without)
    assert not by_name("lokr_rows").fits(without)
