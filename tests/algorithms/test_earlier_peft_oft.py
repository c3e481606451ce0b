"""What decides the rotation of PEFT before 0.16, and the weights that it can turn."""

import pytest

from lora_inspect.algorithms import by_name
from lora_inspect.algorithms.earlier_peft_oft import settings
from lora_inspect.algorithms.record import Surroundings

FREE = {"coft": False, "eps": 6e-5, "block_share": True}
LIMITED = {"coft": True, "eps": 0.1, "block_share": False}
ROWS, COLUMNS = by_name("peft_oft_rows").formula, by_name("peft_oft_lengths").formula


def around(config):
    return Surroundings("layer", ("generators",), config, {}, None, False)


@pytest.mark.parametrize(("config", "expected"), [(FREE, {"eps": None}), (LIMITED, {"eps": 0.1})])
def test_the_config_says_the_limit(config, expected):
    assert settings(around(config)) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "put it next to"),
        ({}, "coft and eps"),
        ({**LIMITED, "coft": 1}, "coft and eps"),
        ({**LIMITED, "eps": True}, "coft and eps"),
        ({**LIMITED, "eps": "0.1"}, "coft and eps"),
        ({**LIMITED, "eps": 0.0}, "coft and eps"),
        ({**LIMITED, "eps": float("inf")}, "coft and eps"),
        ({**LIMITED, "eps": 10**400}, "coft and eps"),
        ({**LIMITED, "block_share": True}, "the number of blocks"),
        ({**LIMITED, "block_share": None}, "the number of blocks"),
    ],
)
def test_what_leaves_the_limit_open(config, words):
    assert words in settings(around(config))


@pytest.mark.parametrize(
    ("formula", "shapes", "weight", "fits"),
    [
        (ROWS, {"generators": (2, 3, 3)}, (6, 5), True),
        (ROWS, {"generators": (2, 3, 3)}, (6, 5, 3, 3), True),
        (ROWS, {"generators": (2, 3, 3)}, (5, 6), False),
        (ROWS, {"generators": (2, 3, 3)}, (6,), False),
        (ROWS, {"generators": (1, 3, 3)}, (9, 5), True),
        (ROWS, {"generators": (1, 3, 3)}, (8, 5), False),
        (COLUMNS, {"generators": (2, 3, 3), "lengths": (5, 1)}, (5, 6), True),
        (COLUMNS, {"generators": (2, 9, 9), "lengths": (5, 1)}, (5, 2, 3, 3), True),
        (COLUMNS, {"generators": (2, 3, 3), "lengths": (5, 1)}, (4, 6), False),
        (COLUMNS, {"generators": (2, 3, 3), "lengths": (5, 1)}, (5, 3), False),
        (COLUMNS, {"generators": (1, 3, 3), "lengths": (5, 1)}, (5, 9), True),
        (COLUMNS, {"generators": (1, 3, 3), "lengths": (5, 1)}, (5, 8), False),
    ],
)
def test_the_weights_that_are_turned(formula, shapes, weight, fits):
    assert formula.check(shapes) is None
    assert (formula.misfit(shapes, weight) is None) == fits


@pytest.mark.parametrize("formula", [ROWS, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize("generators", [(2, 3), (2, 3, 4), (2, 4, 3), (0, 3, 3), (2, 0, 0), (2, 3, 3, 1)])
def test_what_is_no_stack_of_square_blocks_is_refused(formula, generators):
    lengths = {} if formula is ROWS else {"lengths": (5, 1)}
    assert str(list(generators)) in formula.check({"generators": generators, **lengths})


@pytest.mark.parametrize("lengths", [(5,), (5, 2), (0, 1), (5, 1, 1), (1, 5)])
def test_what_is_no_number_for_each_row_is_refused(lengths):
    assert str(list(lengths)) in COLUMNS.check({"generators": (2, 3, 3), "lengths": lengths})
