"""Shapes that are those of no factors of PEFT's methods, each of which is told by its keys."""

import pytest

from lora_inspect.algorithms import by_name, every
from lora_inspect.algorithms.record import Surroundings

every()

DELORA = {"down": (4, 12), "up": (20, 4), "strength": (1,), "norms": (12,)}
GRALORA = {"down": (2, 6, 4), "up": (2, 4, 10)}
HYBRID = {**GRALORA, "general_down": (3, 12), "general_up": (20, 3)}
FITTING = {
    "miss": [{"block": (4, 20)}],
    "miss_mini": [{"block": (4, 20)}],
    "miss_bat": [{"block": (5, 4, 4)}],
    "delora": [DELORA],
    "gralora": [GRALORA, HYBRID],
    "c3a": [{"kernel": (5, 3, 4)}],
    "fourierft": [{"spectrum": (240,)}, {"spectrum": (1,)}],
    "waveft": [{"spectrum": (240,)}, {"spectrum": (1,)}],
    "deft": [{"directions": (20, 4), "put": (4, 12)}, {"directions": (20, 20)}],
    "kasa": [{"down": (4, 12), "up": (20, 4), "diagonal": (4,)}],
}
# What is changed in the shapes that fit, one at a time.
REFUSED = {
    "miss": [{"block": shape} for shape in ((), (4,), (4, 0), (0, 4), (2, 3, 4), (2, 2, 2, 2))],
    "miss_mini": [{"block": shape} for shape in ((), (4,), (4, 0), (0, 4), (2, 3, 4), (2, 2, 2, 2))],
    "miss_bat": [{"block": shape} for shape in ((), (4,), (4, 4), (0, 2, 2), (2, 0, 0), (2, 3, 4), (2, 2, 2, 2))],
    "delora": [
        *({"down": shape} for shape in ((4,), (3, 12), (0, 12), (4, 12, 1))),
        {"down": (0, 12), "up": (20, 0)},
        {"down": (4, 0), "norms": (0,)},
        *({"up": shape} for shape in ((20,), (20, 3), (0, 4), (20, 4, 1))),
        *({"strength": shape} for shape in ((), (2,), (1, 1))),
        *({"norms": shape} for shape in ((), (11,), (20,), (1, 12))),
    ],
    "gralora": [
        *({"down": shape} for shape in ((2, 6), (2, 6, 4, 1), (3, 6, 4), (2, 6, 3), (2, 0, 4))),
        *({"up": shape} for shape in ((2, 4), (2, 4, 10, 1), (3, 4, 10), (2, 3, 10), (2, 4, 0))),
        {"down": (2, 6, 3), "up": (2, 3, 10)},
        {"down": (2, 6, 0), "up": (2, 0, 10)},
        {"general_down": (3, 12)},
        {"general_up": (20, 3)},
        {"general_down": (3, 12), "general_up": (20, 2)},
        {"general_down": (3, 12), "general_up": (12, 3)},
        {"general_down": (3, 11), "general_up": (20, 3)},
        {"general_down": (3, 12, 1), "general_up": (20, 3)},
        {"general_down": (0, 12), "general_up": (20, 0)},
    ],
    "c3a": [{"kernel": shape} for shape in ((5, 3), (5, 3, 4, 1), (0, 3, 4), (5, 0, 4), (5, 3, 0))],
    "fourierft": [{"spectrum": shape} for shape in ((), (0,), (240, 1), (1, 240))],
    "waveft": [{"spectrum": shape} for shape in ((), (0,), (240, 1), (1, 240))],
    "deft": [
        *({"directions": shape} for shape in ((20,), (20, 3), (20, 4, 1))),
        {"directions": (3, 4)},
        {"directions": (0, 4)},
        {"directions": (20, 0), "put": (0, 12)},
        *({"put": shape} for shape in ((4,), (3, 12), (4, 0), (4, 12, 1))),
    ],
    "kasa": [
        *({"down": shape} for shape in ((4,), (3, 12), (4, 0), (4, 12, 1))),
        *({"up": shape} for shape in ((20,), (20, 3), (0, 4), (20, 4, 1))),
        *({"diagonal": shape} for shape in ((), (3,), (4, 1))),
    ],
}


@pytest.mark.parametrize("name", FITTING)
def test_shapes_that_are_theirs(name):
    assert [by_name(name).formula.check(shapes) for shapes in FITTING[name]] == [None] * len(FITTING[name])


@pytest.mark.parametrize(("name", "changed"), [(name, each) for name, own in REFUSED.items() for each in own])
def test_shapes_that_are_not(name, changed):
    assert by_name(name).formula.check({**FITTING[name][0], **changed})


@pytest.mark.parametrize("name", sorted({"delora", "gralora", "c3a"}))
@pytest.mark.parametrize("weight", [(12, 20), (20, 13), (19, 12), (20, 12, 3)])
def test_weights_that_they_do_not_fit(name, weight):
    formula = by_name(name).formula
    assert formula.misfit(FITTING[name][0], (20, 12)) is None
    assert "changes a weight of [20, 12]" in formula.misfit(FITTING[name][0], weight)


def is_settled(name, config):
    around = Surroundings("layer", set(FITTING[name][0]), config, {}, None, False)
    return not isinstance(by_name(name).settings(around), str)


NOT_NUMBERS = (None, "4", True, [], {}, float("nan"), float("inf"), 10**400)
NOT_SEEDS = (None, "777", True, [], 1.0, 2**64, -(2**63) - 1)
DRAWN = {"scaling": 150.0, "random_loc_seed": 777}
WAVES = {**DRAWN, "use_idwt": True, "wavelet_family": "db1"}
DEFT = {"decomposition_method": "relu", "para": False, "alpha": None}
# An algorithm, a config, and whether it says enough.
SETTINGS = [
    ("gralora", None, False),
    ("gralora", {}, False),
    ("gralora", {"alpha": 4}, True),
    ("gralora", {"alpha": -0.5}, True),
    *(("gralora", {"alpha": value}, False) for value in NOT_NUMBERS),
    ("fourierft", None, False),
    ("fourierft", DRAWN, True),
    *(("fourierft", {**DRAWN, "scaling": value}, False) for value in NOT_NUMBERS),
    *(("fourierft", {**DRAWN, "random_loc_seed": value}, False) for value in NOT_SEEDS),
    *(("fourierft", {**DRAWN, "random_loc_seed": value}, True) for value in (-(2**63), 0, 2**64 - 1)),
    ("waveft", None, False),
    *(("waveft", {**WAVES, "wavelet_family": value}, True) for value in ("db1", "db2", "sym2")),
    *(("waveft", {**WAVES, "wavelet_family": value}, False) for value in (None, "db3", "sym4", 1, [], {})),
    ("waveft", {**WAVES, "use_idwt": False, "wavelet_family": "db3"}, True),
    *(("waveft", {**WAVES, "use_idwt": value}, False) for value in (None, 1, "yes")),
    *(("waveft", {**WAVES, "scaling": value}, False) for value in NOT_NUMBERS),
    *(("waveft", {**WAVES, "random_loc_seed": value}, False) for value in NOT_SEEDS),
    ("deft", None, False),
    ("deft", DEFT, True),
    ("deft", {name: value for name, value in DEFT.items() if name != "alpha"}, True),
    ("deft", {**DEFT, "decomposition_method": "qr", "alpha": 4}, True),
    ("deft", {**DEFT, "para": True}, False),
    *(("deft", {**DEFT, "alpha": value}, value is None) for value in NOT_NUMBERS),
    *(("deft", {**DEFT, "decomposition_method": value}, False) for value in (None, "svd", ["qr"], 1, {})),
    *(("deft", {**DEFT, "para": value}, False) for value in (None, 0, "no")),
    ("kasa", {"kasa_config": {"beta": 1e-4}}, True),
    *(("kasa", config, False) for config in (None, {}, {"kasa_config": None}, {"kasa_config": True})),
    *(("kasa", {"kasa_config": {}, "init_lora_weights": init}, True) for init in (True, "gaussian", "orthogonal")),
    *(("kasa", {"kasa_config": {}, "init_lora_weights": init}, False) for init in ("pissa", "OLoRA", "pissa_niter_4")),
]


@pytest.mark.parametrize(("name", "config", "is_enough"), SETTINGS)
def test_configs_that_say_enough(name, config, is_enough):
    assert is_settled(name, config) is is_enough


@pytest.mark.parametrize("name", ["fourierft", "waveft"])
@pytest.mark.parametrize(
    ("weight", "fits"),
    [
        ((20, 12), True),
        ((20, 12, 1, 1), True),
        ((19, 12), False),
        ((20, 12, 3), False),
        ((240,), False),
        ((), False),
        ((2, 107374181), True),
        ((2, 107374182), False),
    ],
)
def test_weights_whose_entries_are_drawn(name, weight, fits):
    wrong = by_name(name).formula.misfit({"spectrum": (240,)}, weight)
    assert (wrong is None) is fits
    assert fits or "entries" in wrong


@pytest.mark.parametrize(
    ("shapes", "weight"),
    [
        (FITTING["deft"][0], (19, 12)),
        (FITTING["deft"][0], (20, 13)),
        (FITTING["deft"][0], (20, 12, 3)),
        (FITTING["deft"][0], (20,)),
        (FITTING["deft"][1], (21, 12)),
    ],
)
def test_weights_that_deft_does_not_fit(shapes, weight):
    formula = by_name("deft").formula
    assert formula.misfit(FITTING["deft"][0], (20, 12, 1)) is None
    assert formula.misfit(FITTING["deft"][1], (20, 30)) is None
    assert "changes a Linear weight of 20 rows" in formula.misfit(shapes, weight)


def test_what_deft_tells_of_the_weight():
    assert [by_name("deft").formula.shape(shapes) for shapes in FITTING["deft"]] == [(20, 12), (20, None)]


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ((20, 12), None),
        ((20, 5), "changes a weight of [20, 12]"),
        ((19, 12), "changes a weight of [20, 12]"),
        ((20, 4), "takes 4 singular triples away"),
        ((4, 12), "takes 4 singular triples away"),
        ((20,), "changes a weight of [20, 12]"),
        ((20, 12, 3), "changes a weight of [20, 12]"),
    ],
)
def test_weights_that_kasa_does_not_fit(weight, words):
    wrong = by_name("kasa").formula.misfit(FITTING["kasa"][0], weight)
    assert (wrong is None) if words is None else words in wrong
