"""What methods of PEFT say of shapes and configurations that are not theirs. Their formulas are in `cases/`."""

import pytest

from lora_inspect.algorithms import every
from lora_inspect.algorithms.record import Surroundings

TOKENS = {"rows": (2, 12)}
CHECKS = [
    ("hra", {"vectors": (12,)}, "are no vectors"),
    ("hra", {"vectors": (12, 0)}, "are no vectors"),
    ("hra", {"vectors": (3, 4)}, "at most as many"),
    ("beft", {"added": (12,)}, "is no vector"),
    ("beft", {"added": (1, 0)}, "is no vector"),
    ("beft", {"added": (2, 12)}, "is no vector"),
    ("trainable_tokens", {"rows": (12,)}, "are no rows"),
    ("trainable_tokens", {"rows": (0, 12)}, "are no rows"),
    ("shira", {"values": (), "entries": (2,)}, "are no values"),
    ("shira", {"values": (0,), "entries": (2, 0)}, "are no values"),
    ("shira", {"values": (3,), "entries": (2, 4)}, "are no values"),
    ("shira", {"values": (3,), "entries": (3, 3)}, "are no values"),
]
MISFITS = [
    ("hra", {"vectors": (12, 2)}, (20, 13), "reflects rows of 12 numbers"),
    ("hra", {"vectors": (12, 2)}, (12,), "reflects rows of 12 numbers"),
    ("beft", {"added": (1, 12)}, (13,), "changes a bias of 12 numbers"),
    ("trainable_tokens", {"rows": (2, 12)}, (20, 13), "replaces rows of 12 numbers"),
    ("trainable_tokens", {"rows": (2, 12)}, (20, 12, 3), "replaces rows of 12 numbers"),
    ("shira", {"values": (3,), "entries": (2, 3)}, (12,), "entries of a matrix"),
    ("shira", {"values": (3,), "entries": (2, 3)}, (12, 3, 3, 3), "entries of a matrix"),
]
CONFIGS = [
    ("hra", {}, None, "there is none for this module"),
    ("hra", {}, {}, "does not say the apply_GS"),
    ("hra", {}, {"apply_GS": 1}, "does not say the apply_GS"),
    ("trainable_tokens", TOKENS, None, "there is none for this module"),
    *(
        ("trainable_tokens", TOKENS, {"token_indices": odd}, "are no list of 2 tokens")
        for odd in (None, [], [1], [1, 2, 3], [1, True], [1, -2], [1, 2.0], [1, [2]], {"1": 2}, "12", 12)
    ),
    ("trainable_tokens", TOKENS, {"token_indices": [4, 4]}, "name a token twice"),
    ("lora_tokens", TOKENS, None, "there is none for this module"),
    *(
        ("lora_tokens", TOKENS, {"trainable_token_indices": odd}, "are no list of 2 tokens")
        for odd in (None, [1], {"other": [1, 2]}, {"": [1, 2]}, {"layer": [1, 2], "yer": [1, 3]}, {"layer": 12})
    ),
]


def found(name):
    return every()[name]


@pytest.mark.parametrize(("name", "shapes", "says"), CHECKS)
def test_shapes_of_no_such_factors(name, shapes, says):
    assert says in found(name).formula.check(shapes)


@pytest.mark.parametrize(("name", "shapes", "weight", "says"), MISFITS)
def test_weights_of_another_shape(name, shapes, weight, says):
    assert says in found(name).formula.misfit(shapes, weight)


@pytest.mark.parametrize(("name", "shapes", "config", "says"), CONFIGS)
def test_configs_that_do_not_say_the_formula(name, shapes, config, says):
    around = Surroundings("model.layer", list(shapes), config, {}, None, False, shapes)
    assert says in found(name).settings(around)
