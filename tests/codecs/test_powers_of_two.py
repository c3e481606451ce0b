"""Exponents of eight bits, against the format's definition and torch's own type."""

import pytest
import torch

from lora_inspect.codecs.four_bits import powers

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_exponent_is_its_power(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    found = powers(codes.view(2, 128), torch.empty(0, dtype=dtype))
    assert found.shape == (2, 128)
    assert [number.item() for number in found.flatten()[:255]] == [2.0 ** (code - 127) for code in range(255)]
    assert found[1, 127].isnan()


def test_equals_the_type_of_torch():
    codes = torch.arange(255, dtype=torch.uint8)
    assert torch.equal(powers(codes, torch.empty(0)), codes.view(torch.float8_e8m0fnu).float())
