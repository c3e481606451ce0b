"""fp8 codes as float32, against torch's own casts and the bits themselves."""

import pytest
import torch

from lora_inspect.files.safetensors.dtypes import decode_number
from lora_inspect.maths.tensors import narrow, widen

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


def nearest(values, dtype):
    """The nearest codes in float64, one binade after the other: to even where two are as near, saturated."""
    mantissa, least, largest = {torch.float8_e4m3fn: (3, -6, 448.0), torch.float8_e5m2: (2, -14, 57344.0)}[dtype]
    exact = values.double()
    exponent = torch.frexp(exact).exponent.sub(1).clamp(min=least)
    step = torch.ldexp(torch.ones_like(exact), exponent - mantissa)
    whole = exact / step  # exact: steps are powers of two
    down = whole.floor()
    above = whole - down
    up = (above > 0.5) | ((above == 0.5) & (down.remainder(2) == 1))
    return ((down + up) * step).clamp(-largest, largest)


def every_bfloat16():
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    return values[values.isfinite()]


def between_codes(dtype):
    """Each number in the middle of two codes, and its neighbours among float32 numbers."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    codes = codes[codes.isfinite()].unique()
    middle = (codes[1:].double() + codes[:-1].double()).div(2).float()
    beyond = torch.tensor([464.0, 465, 480, 61440, 65536, 1e30]).repeat(2).mul(torch.tensor([1.0, -1.0]).repeat(6))
    values = torch.cat([codes, middle, beyond])
    return torch.cat([values, *(values.nextafter(torch.tensor(side)) for side in (torch.inf, -torch.inf))])


def random_bits():
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 20,), generator=torch.Generator().manual_seed(3))
    values = bits.to(torch.int32).view(torch.float32)
    return values[values.isfinite()]


@pytest.mark.parametrize("dtype", STORED)
def test_numbers_become_the_nearest_codes(dtype):
    for values in (every_bfloat16(), between_codes(dtype), random_bits(), torch.tensor([0.0, -0.0])):
        largest = torch.finfo(dtype).max
        codes = torch.empty(values.shape, dtype=dtype)
        narrow(values.clone(), codes)
        assert same(codes.double().float(), nearest(values, dtype).float().copysign(values))
        assert codes.view(torch.uint8).equal(values.clamp(-largest, largest).to(dtype).view(torch.uint8))


@pytest.mark.parametrize("dtype", STORED)
def test_no_number_is_no_code_and_codes_are_their_own_nearest(dtype):
    codes = torch.empty(1, dtype=dtype)
    narrow(torch.tensor([torch.nan]), codes)
    assert codes.float().isnan()
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    every = every[every.float().isfinite()]
    again = torch.empty(every.shape, dtype=dtype)
    narrow(every.float(), again)
    assert again.view(torch.uint8).equal(every.view(torch.uint8))
