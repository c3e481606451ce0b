"""A and B of all experts at once: which shapes they can have."""

import pytest

from lora_inspect.algorithms.lora_experts import check


@pytest.mark.parametrize(
    ("down", "up", "says"),
    [
        ((4, 3), (5, 4), None),
        ((4, 3, 1, 1), (5, 4), "are not matrices"),
        ((4, 3), (5, 4, 1, 1), "are not matrices"),
        ((4, 3, 1, 1), (5, 4, 1, 1), "are not matrices"),
        ((4,), (5, 4), "are not matrices"),
        ((3, 4), (5, 3), "has a number of rows that is not a multiple of its 2 experts"),
        ((4, 3), (5, 6), "[4, 3]"),
    ],
)
def test_the_shapes_of_two_experts(down, up, says):
    found = check(2, {"down": down, "up": up})
    assert found is None if says is None else says in found
