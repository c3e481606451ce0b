"""Which V a module of FRoD has, against PEFT's own names of categories."""

import pytest
from peft.tuners.frod.model import _category_from_key

from lora_inspect.algorithms.on_demand.frod import category

PATHS = [
    "q_proj",
    "layers.3.q_proj",
    "model.layers.11.self_attn.q_proj",
    "h.0",
    "encoder.layer.0.attention.output.dense",
    "attention.output.dense",
    "encoder.layer.0.output.dense",
    "output.dense",
    "attention.self.output.dense",
    "encoder.attention.0.output.dense",
]


@pytest.mark.parametrize("path", PATHS)
def test_the_category_is_that_of_peft(path):
    expected = _category_from_key(path)
    assert category(path, {expected, "another"}) == expected
    assert category(path, {"another"}) is None
