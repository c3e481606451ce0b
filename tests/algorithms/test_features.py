"""How wide the changed weight is, against the weights that lycoris-lora and PEFT made the tensors for."""

import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule

from lora_inspect.algorithms import by_name


def tensors(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def features(name, factors):
    told = by_name(name).features
    assert told is not None
    return told(factors)


def test_boft_tells_the_rows():
    layer = torch.nn.Linear(40, 32)
    assert features("lycoris_boft", tensors(ButterflyOFTModule("x", layer, lora_dim=4, alpha=0))) == (32, None)


def test_replaced_weights():
    assert features("replaced", {"set_weight": (24, 40, 3, 3)}) == (24, 360)


def test_mlx_is_transposed():
    factors = {"lora_a": (40, 8), "lora_b": (8, 24)}
    assert features("mlx", factors) == (24, 40)


TOLD = ["lycoris_boft", "replaced", "mlx"]


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (1, 1), (0, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_shapes_that_fit_nothing_are_no_error(name, shape):
    roles = sorted(by_name(name).suffixes.values())
    for count in range(len(roles) + 1):
        found = features(name, dict.fromkeys(roles[:count], shape))
        assert all(size is None or isinstance(size, int) for size in found)
