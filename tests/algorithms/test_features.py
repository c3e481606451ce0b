"""How wide the changed weight is, as far as the shapes of an algorithm tell that is not computed."""

import pytest

from lora_inspect.algorithms import by_name


def features(name, factors):
    told = by_name(name).features
    assert told is not None
    return told(factors)


def test_mlx_is_transposed():
    factors = {"lora_a": (40, 8), "lora_b": (8, 24)}
    assert features("mlx", factors) == (24, 40)


TOLD = ["mlx"]


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (1, 1), (0, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_shapes_that_fit_nothing_are_no_error(name, shape):
    roles = sorted(by_name(name).suffixes.values())
    for count in range(len(roles) + 1):
        found = features(name, dict.fromkeys(roles[:count], shape))
        assert all(size is None or isinstance(size, int) for size in found)
