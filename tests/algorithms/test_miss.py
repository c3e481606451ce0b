"""MiSS and Bone: weights that they do not fit, and which form it is."""

import pytest

from lora_inspect.algorithms import by_name, every
from lora_inspect.algorithms.record import Surroundings

every()
MISS, MINI, BAT = (by_name(name) for name in ("miss", "miss_mini", "miss_bat"))


@pytest.mark.parametrize(
    ("algorithm", "block", "weight"),
    [
        (MISS, (4, 20), (40, 12)),
        (MISS, (13, 20), (20, 12)),
        (MISS, (4, 20), (20, 12, 3)),
        (MISS, (4, 20), (20,)),
        (MINI, (4, 20), (30, 12)),
        (MINI, (13, 20), (40, 12)),
        (BAT, (5, 4, 4), (24, 12)),
        (BAT, (5, 4, 4), (20, 14)),
        (BAT, (5, 4, 4), (20, 12, 3, 3)),
    ],
)
def test_weights_that_they_do_not_fit(algorithm, block, weight):
    shapes = {"block": block}
    assert algorithm.formula.check(shapes) is None
    assert "Linear weight" in algorithm.formula.misfit(shapes, weight)


@pytest.mark.parametrize(
    ("algorithm", "block", "shape"),
    [(MISS, (4, 20), (20, None)), (MINI, (4, 20), (None, None)), (BAT, (5, 4, 4), (20, None))],
)
def test_what_blocks_tell_of_the_weight(algorithm, block, shape):
    assert algorithm.formula.shape({"block": block}) == shape


@pytest.mark.parametrize(
    ("config", "found"),
    [({"init_weights": "mini"}, MINI), ({"init_weights": True}, MISS), ({"init_weights": ["mini"]}, MISS), ({}, MISS),
     (None, MISS)],
)  # fmt: skip
def test_only_the_config_tells_the_mini_form(config, found):
    assert MISS.variant(Surroundings("layer", {"block"}, config, {}, None, False)) is found
