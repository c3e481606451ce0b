"""Sizes and numbers of the element types, against the safetensors library, torch and written-out values."""

import math

import pytest
import torch
from hypothesis import given
from make_synthetic import element
from safetensors.torch import _TYPES
from strategies import stored_numbers

from lora_inspect.files.safetensors.dtypes import BITS, PLAIN_FLOATS, decode_number


@pytest.mark.parametrize(("name", "dtype"), _TYPES.items(), ids=_TYPES)
def test_every_type_that_the_library_maps_has_its_size(name, dtype):
    packed = {"F4": 2}.get(name, 1)  # torch keeps two of them in a byte
    assert BITS[name] * packed == 8 * dtype.itemsize


@given(stored_numbers)
def test_a_stored_number_is_decoded_exactly(stored):
    dtype, number = stored
    assert decode_number(dtype, element(dtype, number)) == number


@pytest.mark.parametrize(("name", "torch_name"), [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")])
def test_every_eight_bit_float_is_what_torch_reads(name, torch_name):
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(getattr(torch, torch_name)).double().tolist()
    for code, number in zip(codes.tolist(), expected, strict=True):
        found = decode_number(name, bytes([code]))
        assert found == number or (math.isnan(found) and math.isnan(number))


@pytest.mark.parametrize(("data", "number"), [(b"\x80\x3f", 1.0), (b"\x40\x40", 3.0), (b"\x00\x80", -0.0)])
def test_bfloat16_is_the_upper_half_of_a_float32(data, number):
    assert decode_number("BF16", data) == number


@pytest.mark.parametrize(("data", "value"), [(b"\x00", False), (b"\x01", True), (b"\xff", True)])
def test_any_byte_but_zero_is_true(data, value):
    assert decode_number("BOOL", data) is value


@pytest.mark.parametrize("dtype", ["C64", "F4", "F8_E8M0"])
def test_types_without_a_plain_reading_give_none(dtype):
    assert decode_number(dtype, bytes(max(1, BITS[dtype] // 8))) is None


def test_the_types_of_a_plain_weight_are_the_four_ieee_like_floats():
    assert sorted(PLAIN_FLOATS) == ["BF16", "F16", "F32", "F64"]
