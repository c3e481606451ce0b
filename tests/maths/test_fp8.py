"""fp8 codes as float32, against torch's own casts and the bits themselves."""

import pytest
import torch

from lora_inspect.files.dtypes import decode_number
from lora_inspect.maths.fp8 import widen

pytestmark = pytest.mark.numeric

STORED = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


def same(found, expected):
    return torch.equal(found.isnan(), expected.isnan()) and torch.equal(
        found.nan_to_num(1.0, torch.inf, -torch.inf).view(torch.int32),
        expected.nan_to_num(1.0, torch.inf, -torch.inf).view(torch.int32),
    )


@pytest.mark.parametrize("dtype", STORED)
def test_every_code_is_its_number_with_its_sign(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    found = torch.empty(2, 128)
    widen(codes.view(dtype).view(2, 128), found)
    by_bits = torch.tensor([decode_number(STORED[dtype], bytes([code])) for code in range(256)])
    assert same(found.flatten(), by_bits)
    assert same(found.flatten(), codes.view(dtype).float())
    assert int(by_bits.isnan().sum()) == (2 if dtype == torch.float8_e4m3fn else 6)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_one_code_for_nan_is_found_among_others(code):
    codes = torch.full((1000,), 8, dtype=torch.uint8)
    codes[999] = code
    found = torch.empty(1000)
    widen(codes.view(torch.float8_e4m3fn), found)
    assert found[:999].tolist() == [2.0**-6] * 999
    assert found[999].isnan()
