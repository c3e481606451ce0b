"""BD-LoRA: what a config has to say of blocks, and shapes that have none."""

import pytest

from lora_inspect.algorithms import by_name
from lora_inspect.algorithms.record import Surroundings

LORA, BDLORA = by_name("lora"), by_name("bdlora")
PLAIN = {"down": (4, 12), "up": (20, 4)}
BLOCKS_A = {"down": (4, 6), "up": (20, 4)}
BLOCKS_B = {"down": (4, 12), "up": (20, 2)}
A, B = "target_modules_bd_a", "target_modules_bd_b"


def variant(shapes, options, key="base_model.model.deep.layer"):
    config = options and {"use_bdlora": options}
    return BDLORA.variant(Surroundings(key, set(shapes), config, {}, None, False, shapes))


@pytest.mark.parametrize(
    ("shapes", "options", "shape"),
    [
        (BLOCKS_A, {"nblocks": 2, A: ["layer"]}, (20, 12)),
        (BLOCKS_A, {"nblocks": 2, A: ["p.l"], B: None}, (20, 12)),
        (BLOCKS_B, {"nblocks": 2, B: ["other", "deep"], A: []}, (20, 12)),
        (PLAIN, {"nblocks": 1, B: ["layer"]}, (20, 12)),
        (PLAIN, {"nblocks": 4, A: ["layer"]}, (20, 48)),
    ],
)
def test_blocks_that_a_config_names(shapes, options, shape):
    formula = variant(shapes, options).formula
    assert formula.check(shapes) is None
    assert formula.shape(shapes) == shape
    assert formula.misfit(shapes, shape) is None
    assert formula.misfit(shapes, (20, 6)) == f"changes a weight of {list(shape)}"


@pytest.mark.parametrize("options", [None, {"nblocks": 2}, {"nblocks": 2, A: ["model", "base", "Layer"]}])
def test_modules_without_blocks_are_loras(options):
    assert variant(PLAIN, options) is LORA


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        (BLOCKS_B, None, "differ in rank, and no adapter_config.json says use_bdlora"),
        (BLOCKS_B, {"nblocks": 2}, "does not give the blocks of each factor in use_bdlora"),
        (BLOCKS_B, {"nblocks": 2, A: ["other"]}, "does not give the blocks of each factor in use_bdlora"),
        (BLOCKS_B, {"nblocks": 2, A: ["layer"], B: ["deep"]}, "does not give the blocks of each factor in use_bdlora"),
        *(
            (BLOCKS_B, {"nblocks": odd, B: ["layer"]}, "does not give the blocks of each factor in use_bdlora")
            for odd in (None, 0, True, "2", 2.0)
        ),
        *(
            (BLOCKS_B, {"nblocks": 2, B: odd}, "does not give the blocks of each factor in use_bdlora")
            for odd in ("layer", {"layer": 1}, [1], 1)
        ),
        (BLOCKS_B, ["layer"], "does not give the blocks of each factor in use_bdlora"),
        (BLOCKS_B, True, "does not give the blocks of each factor in use_bdlora"),
        (BLOCKS_B, {"nblocks": 4, B: ["layer"]}, "has rank 4 and up"),
        (BLOCKS_B, {"nblocks": 3, B: ["layer"]}, "has no 3 blocks below one another"),
        (BLOCKS_A, {"nblocks": 3, A: ["layer"]}, "has no 3 blocks below one another"),
        (
            {"down": (4, 6, 3, 3), "up": (20, 4, 1, 1)},
            {"nblocks": 2, A: ["layer"]},
            "has no 2 blocks below one another",
        ),
    ],
)
def test_what_leaves_the_blocks_open(shapes, options, words):
    assert words in variant(shapes, options)


@pytest.mark.parametrize(
    "shapes",
    [
        PLAIN,
        {"down": (4, 12), "up": (20, 3)},
        {"down": (2, 12), "up": (20, 4)},
        {"down": (0, 12), "up": (20, 0)},
        {"down": (4, 12, 1), "up": (20, 2, 1)},
        {"down": (4, 12)},
        {"up": (20, 2)},
    ],
)
def test_shapes_without_blocks_are_not_its_own(shapes):
    assert not BDLORA.fits(shapes)
    assert BDLORA.fits(BLOCKS_B)
