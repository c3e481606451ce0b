"""The rank of a change as a product, of factors that nobody could hold."""

from math import prod

import pytest
import torch

from lora_inspect.algorithms import full, loha, lokr, lora
from lora_inspect.converting.steps.part import thin_rank
from lora_inspect.converting.target.target_algorithm import is_thin

HUGE = 1 << 25
CASES = {
    "LoRA": (lora.ALGORITHM, {"down": (8, HUGE), "up": (HUGE, 8)}, 8),
    "a Tucker core": (lora.ALGORITHM, {"down": (8, HUGE, 1, 1), "mid": (5, 8, 3, 3), "up": (HUGE, 5, 1, 1)}, 5),
    "LoHa": (loha.ALGORITHM, loha.factor_shapes(HUGE, HUGE, 4096), 4096**2),
    "LoKr": (lokr.ALGORITHM, {"w1": (4, 6), "w2_a": (HUGE, 7), "w2_b": (7, HUGE)}, 28),
    "LoKr of whole factors": (lokr.ALGORITHM, {"w1": (4, 6), "w2": (HUGE, HUGE)}, None),
    "a full difference": (full.ALGORITHMS[0], {"difference": (HUGE, HUGE)}, None),
}


@pytest.mark.parametrize(("algorithm", "shapes", "rank"), CASES.values(), ids=CASES)
def test_shapes_tell_it(algorithm, shapes, rank):
    assert thin_rank(algorithm.formula, shapes) == rank


def test_it_is_that_of_the_product():
    shapes = {"w1": (4, 6), "w2_a": (9, 7), "w2_b": (7, 5)}
    tensors = {role: torch.ones(shape) for role, shape in shapes.items()}
    assert lokr.low_rank(tensors)[1].shape[0] == thin_rank(lokr.ALGORITHM.formula, shapes)


@pytest.mark.parametrize("rank", range(1, 5))
@pytest.mark.parametrize("small", [{"w1": (4, 6)}, {"w1_a": (4, 0), "w1_b": (0, 6)}], ids=["w1", "w1_a"])
@pytest.mark.parametrize(
    "large",
    [
        {"w2": (5, 3)},
        {"w2": (2, 3, 3, 3)},
        {"w2_a": (5, 0), "w2_b": (0, 3)},
        {"w2_a": (5, 0), "w2_b": (0, 3, 3, 3)},
        {"w2_a": (0, 5), "w2_b": (0, 3), "t2": (0, 0, 3, 3)},
    ],
    ids=["w2", "kernel", "w2_a", "kernel apart", "Tucker"],
)
def test_lokr_is_said_to_be_thin_where_its_product_is(small, large, rank):
    """What `compat` says without torch, so that the command that it offers needs no error where none has to be."""
    shapes = {role: tuple(size or rank for size in shape) for role, shape in (small | large).items()}
    out, *columns = lokr.weight_shape(shapes)
    found = thin_rank(lokr.ALGORITHM.formula, shapes)
    assert is_thin(lokr.ALGORITHM, shapes) == (found is not None and found < min(out, prod(columns)))
