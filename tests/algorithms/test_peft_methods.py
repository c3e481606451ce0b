"""What methods of PEFT say of shapes and configurations that are not theirs. Their formulas are in `cases/`."""

import pytest
import torch

from lora_inspect.algorithms import every
from lora_inspect.algorithms.record import Surroundings

TOKENS = {"rows": (2, 12)}
VALUES = {"values": (3,), "entries": (3,)}
SUPRA = {**VALUES, "down": (2, 12), "up": (20, 2)}
THIN = {"down": (3, 20), "up": (20, 3)}
DEEP = {**THIN, "encoder 0": (3, 3), "decoder 0": (3, 3)}
NETWORK = {"act_fn": "relu", "scaling": 1.0, "depth": 1}
MIXED = {"logits_A": (12, 3, 9), "logits_B": (5, 12, 9)}
TURNS = {"angles": (20,), "factors": (20,)}
ZEROS = {"A.zeros": (20, 12), "B.zeros": (20, 12), "C.zeros": (12, 1), "D.zeros": (20,), "E.zeros": (20,)}
PATHS = {
    "A.Xd": (20, 2), "A.Xu": (2, 12), "B.X": (20, 1), "C.Xd": (12, 2), "C.Xu": (2, 1), "D.X": (20,), "E.X": (1,),
}  # fmt: skip


def without(*roles, **added):
    return {role: shape for role, shape in PATHS.items() if role not in roles} | added


DIRECTIONS = {"left": (20, 3), "values": (3,), "right": (3, 12)}
CHECKS = [
    ("osf", DIRECTIONS | {"left": (20, 4)}, "are not directions of a matrix"),
    ("osf", DIRECTIONS | {"values": (4,)}, "are not directions of a matrix"),
    ("osf", DIRECTIONS | {"values": (3, 1)}, "are not directions of a matrix"),
    ("osf", DIRECTIONS | {"right": (4, 12)}, "are not directions of a matrix"),
    ("osf", DIRECTIONS | {"right": (3, 0)}, "are not directions of a matrix"),
    ("osf", {"left": (20, 13), "values": (13,), "right": (13, 12)}, "13 directions, more than a matrix of 20 by 12"),
    ("peft_glora", without("B.X"), "its path glora_B is nothing"),
    ("peft_glora", without("A.Xu"), "its path glora_A is Xd, not a product"),
    ("peft_glora", PATHS | {"A.X": (1,)}, "its path glora_A is Xd and Xu and X"),
    ("peft_glora", PATHS | {"A.Xu": (3, 12)}, "cannot be multiplied"),
    ("peft_glora", PATHS | {"A.Xd": (20, 0), "A.Xu": (0, 12)}, "cannot be multiplied"),
    ("peft_glora", PATHS | {"B.X": (0, 1)}, "which is empty"),
    ("peft_glora", PATHS | {"B.X": (20, 2)}, "glora_B has an impossible shape"),
    ("peft_glora", PATHS | {"B.X": (20,)}, "glora_B has an impossible shape"),
    ("peft_glora", PATHS | {"C.Xu": (2, 3)}, "glora_C has an impossible shape"),
    ("peft_glora", without("C.Xd", "C.Xu") | {"C.X": (1,)}, "glora_C has an impossible shape"),
    ("peft_glora", PATHS | {"D.X": (20, 1)}, "glora_D has an impossible shape"),
    ("peft_glora", PATHS | {"D.X": (21,)}, "its paths have 20 and 21 outputs"),
    ("peft_glora", PATHS | {"C.Xd": (13, 2)}, "its paths have 12 and 13 inputs"),
    ("peft_glora", ZEROS | {"B.zeros": (20, 13)}, "its paths have 12 and 13 inputs"),
    ("road", {"angles": (20,), "factors": (10,)}, "are not as many angles as factors"),
    ("road", {"angles": (0,), "factors": (0,)}, "are not as many angles as factors"),
    ("road", {"angles": (20, 1), "factors": (20, 1)}, "are not as many angles as factors"),
    ("supertuning", {"values": (0,), "entries": (0,)}, "are not values"),
    ("supertuning", {"values": (3,), "entries": (4,)}, "are not values"),
    ("supertuning", {"values": (3, 1), "entries": (3, 1)}, "are not values"),
    ("supertuning", {**VALUES, "down": (2, 12)}, "only one of supertuning_lora_A and supertuning_lora_B is there"),
    ("supertuning", {**VALUES, "up": (2, 12)}, "only one of supertuning_lora_A and supertuning_lora_B is there"),
    ("supertuning", {**SUPRA, "up": (20, 3)}, "cannot be multiplied"),
    ("supertuning", {**SUPRA, "down": (0, 12), "up": (20, 0)}, "cannot be multiplied"),
    ("supertuning", {**SUPRA, "down": (12,)}, "cannot be multiplied"),
    ("peanut", {"down": (3, 20), "up": (20, 4)}, "are not (r, outputs) and (outputs, r)"),
    ("peanut", {"down": (20,), "up": (20,)}, "are not (r, outputs) and (outputs, r)"),
    ("peanut", {"down": (0, 20), "up": (20, 0)}, "are not (r, outputs) and (outputs, r)"),
    ("peanut", {**THIN, "encoder 1": (3, 3), "decoder 1": (3, 3)}, "some of its layers are missing"),
    ("peanut", {**THIN, "encoder 0": (3, 3)}, "1 encoders and 0 decoders"),
    ("peanut", {**DEEP, "decoder 0": (3, 4)}, "decoder 0 [3, 4] is not (3, 3)"),
    ("hra", {"vectors": (12,)}, "are not vectors"),
    ("hra", {"vectors": (12, 0)}, "are not vectors"),
    ("hra", {"vectors": (3, 4097)}, "are 4097 reflections of 3 numbers"),
    ("beft", {"added": (12,)}, "is not a vector"),
    ("beft", {"added": (1, 0)}, "is not a vector"),
    ("beft", {"added": (2, 12)}, "is not a vector"),
    ("trainable_tokens", {"rows": (12,)}, "are not rows"),
    ("trainable_tokens", {"rows": (0, 12)}, "are not rows"),
    ("shira", {"values": (), "entries": (2,)}, "are not values"),
    ("shira", {"values": (0,), "entries": (2, 0)}, "are not values"),
    ("shira", {"values": (3,), "entries": (2, 4)}, "are not values"),
    ("shira", {"values": (3,), "entries": (3, 3)}, "are not values"),
]
MISFITS = [
    ("osf", DIRECTIONS, (20, 13), "changes a matrix of [20, 12]"),
    ("osf", DIRECTIONS, (20, 12, 1), "changes a matrix of [20, 12]"),
    ("peft_glora", PATHS, (20, 13), "changes a matrix of 20 by 12"),
    ("peft_glora", PATHS, (20,), "changes a matrix of 20 by 12"),
    ("peft_glora", PATHS, (20, 12, 1), "changes a matrix of 20 by 12"),
    ("supertuning", VALUES, (12, 3, 3, 3), "entries of a matrix"),
    ("supertuning", SUPRA, (20, 13), "changes a weight of [20, 12]"),
    ("peanut", {"down": (2**23, 20), "up": (20, 2**23)}, (20, 12), "has a network of 8388608 numbers"),
    ("peanut", THIN, (21, 12), "changes a matrix of 20 rows"),
    ("peanut", THIN, (20, 12, 3), "changes a matrix of 20 rows"),
    ("hra", {"vectors": (12, 2)}, (20, 13), "reflects rows of 12 numbers"),
    ("hra", {"vectors": (12, 2)}, (12,), "reflects rows of 12 numbers"),
    ("beft", {"added": (1, 12)}, (13,), "changes a bias of 12 numbers"),
    ("trainable_tokens", {"rows": (2, 12)}, (20, 13), "replaces rows of 12 numbers"),
    ("trainable_tokens", {"rows": (2, 12)}, (20, 12, 3), "replaces rows of 12 numbers"),
    ("vblora", {**MIXED, "bank": (9, 4)}, (20, 13), "changes a weight of [20, 12]"),
    ("vblora", {**MIXED, "bank": (9, 4)}, (20, 12, 3), "changes a weight of [20, 12]"),
    ("vblora", {"logits_A": (13, 3, 9), "logits_B": (5, 13, 9), "bank": (9, 4)}, (20, 12), "is of rank 13, above"),
    ("shira", {"values": (3,), "entries": (2, 3)}, (12,), "entries of a matrix"),
    ("shira", {"values": (3,), "entries": (2, 3)}, (12, 3, 3, 3), "entries of a matrix"),
]
CONFIGS = [
    ("road", TURNS, None, "but this module has none"),
    ("road", TURNS, {"variant": "road_3", "group_size": 4}, "does not say the variant"),
    ("road", TURNS, {"variant": ["road_1"], "group_size": 4}, "does not say the variant"),
    ("road", TURNS, {"variant": "road_1", "group_size": True}, "does not say the group_size"),
    ("road", TURNS, {"variant": "road_1", "group_size": 0}, "does not say the group_size"),
    ("road", TURNS, {"variant": "road_4", "group_size": 10**400}, "does not say the group_size"),
    ("road", TURNS, {"variant": "road_2", "group_size": 5}, "groups of 5 outputs for 20 of them in the variant road_2"),
    ("road", TURNS, {"variant": "road_1", "group_size": 16}, "groups of 16 outputs for 40 of them"),
    ("road", {"angles": (21,), "factors": (21,)}, {"variant": "road_4", "group_size": 2}, "outputs for 10.5 of them"),
    ("supertuning", {"values": (3,)}, {}, "its entries are not in the file"),
    ("supertuning", SUPRA, None, "but this module has none"),
    ("supertuning", SUPRA, {"lora_alpha": None}, "does not say the lora_alpha"),
    ("supertuning", SUPRA, {"lora_alpha": float("inf")}, "does not say the lora_alpha"),
    ("peanut", DEEP, None, "but this module has none"),
    ("peanut", DEEP, {**NETWORK, "depth": 2}, "does not say the depth"),
    ("peanut", THIN, {**NETWORK, "depth": False}, "does not say the depth"),
    ("peanut", DEEP, {**NETWORK, "depth": True}, "does not say the depth"),
    ("peanut", DEEP, {**NETWORK, "scaling": "1"}, "does not say the scaling"),
    ("peanut", DEEP, {**NETWORK, "scaling": 10**400}, "does not say the scaling"),
    ("peanut", DEEP, {**NETWORK, "act_fn": "laplace"}, "its act_fn 'laplace' is not built in"),
    ("peanut", DEEP, {**NETWORK, "act_fn": ["relu"]}, "does not say the act_fn"),
    ("hra", {"vectors": (12, 2)}, None, "but this module has none"),
    ("hra", {"vectors": (12, 2)}, {}, "does not say the apply_GS"),
    ("hra", {"vectors": (12, 2)}, {"apply_GS": 1}, "does not say the apply_GS"),
    ("hra", {"vectors": (12, 13)}, {"apply_GS": True}, "only 12 of 13 vectors of 12 numbers can be orthonormal"),
    ("trainable_tokens", TOKENS, None, "but this module has none"),
    *(
        ("trainable_tokens", TOKENS, {"token_indices": odd}, "does not list 2 tokens")
        for odd in (None, [], [1], [1, 2, 3], [1, True], [1, -2], [1, 2.0], [1, [2]], {"1": 2}, "12", 12)
    ),
    ("trainable_tokens", TOKENS, {"token_indices": [4, 4]}, "names a token twice"),
    ("lora_tokens", TOKENS, None, "but this module has none"),
    *(
        ("lora_tokens", TOKENS, {"trainable_token_indices": odd}, "does not list 2 tokens")
        for odd in (None, [1], {"other": [1, 2]}, {"": [1, 2]}, {"layer": [1, 2], "yer": [1, 3]}, {"layer": 12})
    ),
]


def found(name):
    return every()[name]


def test_small_layers_may_have_more_vectors_than_inputs():
    hra, peanut = found("hra").formula, found("peanut").formula
    assert hra.check({"vectors": (3, 4096)}) is hra.check({"vectors": (5000, 5000)}) is None
    assert peanut.misfit({"down": (32, 2), "up": (2, 32)}, (2, 4096)) is None


@pytest.mark.parametrize(("name", "shapes", "says"), CHECKS)
def test_shapes_of_no_such_factors(name, shapes, says):
    assert says in found(name).formula.check(shapes)


@pytest.mark.parametrize(("name", "shapes", "weight", "says"), MISFITS)
def test_weights_of_another_shape(name, shapes, weight, says):
    assert says in found(name).formula.misfit(shapes, weight)


@pytest.mark.parametrize(("name", "shapes", "config", "says"), CONFIGS)
def test_configs_that_do_not_say_the_formula(name, shapes, config, says):
    around = Surroundings("model.layer", list(shapes), config, {}, None, False, shapes)
    algorithm = found(name)
    assert says in (algorithm.variant or algorithm.settings)(around)


@pytest.mark.parametrize("odd", [-1, 60, 2**40])
def test_entries_beyond_the_weight(odd):
    outside = found("supertuning").formula.outside
    inside = {"entries": torch.tensor([0, 59])}
    assert outside(inside, (5, 12), lora_scale=0.0) is None
    beyond = {"entries": torch.tensor([0, odd])}
    assert outside(beyond, (5, 12), lora_scale=0.0) == f"changes the entry {odd} of a weight"


@pytest.mark.parametrize(("variant", "rows"), [("road_1", 40), ("road_2", 20), ("road_4", 10)])
def test_the_variant_of_road_says_how_many_outputs_it_turns(variant, rows):
    config = {"variant": variant, "group_size": 10}
    road = found("road").variant(Surroundings("layer", list(TURNS), config, {}, None, False, TURNS))
    assert road.formula.shape(TURNS) == (rows, None)
    assert road.formula.together(TURNS) == road.bias.together(TURNS) == 10
    assert road.formula.misfit(TURNS, (rows, 12)) is None
    for odd in ((rows + 1, 12), (rows,), (rows, 12, 1)):
        assert f"turns {rows} outputs" in road.formula.misfit(TURNS, odd)
    assert road.bias.misfit(TURNS, (rows,)) is None
    assert f"turns a bias of {rows} numbers" in road.bias.misfit(TURNS, (rows + 1,))


@pytest.mark.parametrize("path", ["A", "E"])
@pytest.mark.parametrize("odd", [1.0, float("nan")])
def test_zeros_of_glora_that_are_none(path, odd):
    outside = found("peft_glora").formula.outside
    zeros = {role: torch.zeros(shape) for role, shape in ZEROS.items()}
    assert outside(zeros, (20, 12)) is None
    zeros[f"{path}.zeros"].view(-1)[-1] = odd
    assert outside(zeros, (20, 12)) == f"has numbers in glora_{path}.zeros that are not 0"


def test_glora_of_a_layer_without_a_bias_has_zeros_for_it():
    algorithm = found("peft_glora")
    with_bias, without_bias = (
        algorithm.variant(Surroundings("layer", list(shapes), {}, {}, None, False, shapes))
        for shapes in (PATHS, ZEROS | {"A.zeros": (20, 12)})
    )
    assert with_bias.needs_bias
    assert with_bias.bias.misfit(PATHS, (20,)) is None
    assert "changes a bias of 20 numbers" in with_bias.bias.misfit(PATHS, (21,))
    assert without_bias.bias is None
