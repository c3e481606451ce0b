"""MXFP8 against comfy-kitchen, and against the format's definition in plain Python."""

import pytest
import torch
from oracles import oracle

from lora_inspect.codecs.four_bits import padded
from lora_inspect.codecs.mxfp8 import decode
from lora_inspect.files.safetensors.dtypes import decode_number

kitchen = oracle("comfy_kitchen")
pytestmark = pytest.mark.numeric

SHAPES = [(32, 32), (160, 96), (256, 512), (416, 1056)]


def decoded(values, exponents, first=0):
    """The weight, in the memory of the numbers of its codes."""
    decode(values, exponents, first, values)
    return values


def drawn(out, inputs, seed=0):
    """Every code that is a number and every exponent may occur, the 0 of blocks of zeros as well."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (out, inputs), dtype=torch.uint8, generator=generator)
    codes[codes & 0x7F == 0x7F] = 0
    exponents = torch.randint(0, 255, padded(out, inputs // 32), dtype=torch.uint8, generator=generator)
    exponents[0] = 0
    return codes.view(torch.float8_e4m3fn), exponents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_equals_comfy_kitchen_bit_for_bit(out, inputs, dtype):
    codes, exponents = drawn(out, inputs)
    expected = kitchen.dequantize_mxfp8(codes, exponents.view(torch.float8_e8m0fnu), dtype)
    found = decoded(codes.float(), exponents).to(dtype)
    whole = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(found.view(whole), expected.view(whole))


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_reads_what_comfy_kitchen_writes(out, inputs):
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(3)) / 8
    weight[0] = 0
    codes, exponents = kitchen.quantize_mxfp8(weight)
    found = decoded(codes.float(), exponents.view(torch.uint8))
    assert torch.equal(found, kitchen.dequantize_mxfp8(codes, exponents, torch.float32))
    # Three bits of a mantissa: half of 2 ** -3 is missed at most, and below the least normal number half of its step.
    largest = weight.view(out, -1, 32).abs().amax(-1, keepdim=True)
    wide = weight.view(out, -1, 32)
    assert ((found.view(out, -1, 32) - wide).abs() <= torch.maximum(wide.abs() * 2**-4, largest * 2**-15)).all()


def test_each_number_is_that_of_the_definition():
    codes, exponents = drawn(160, 96, seed=4)
    found = decoded(codes.float(), exponents)
    flat = exponents.flatten()
    for row, column in ((1, 0), (1, 33), (31, 95), (32, 64), (95, 31), (128, 3), (159, 95)):
        place = row // 128 * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column // 32
        number = decode_number("F8_E4M3", bytes([codes.view(torch.uint8)[row, column].item()]))
        assert found[row, column].item() == number * 2.0 ** (flat[place].item() - 127)


def test_no_number_stays_none():
    codes = torch.full((32, 32), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert decoded(codes.float(), torch.full((128, 4), 127, dtype=torch.uint8)).isnan().all()
    assert decoded(torch.ones(32, 32), torch.full((128, 4), 255, dtype=torch.uint8)).isnan().all()


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (127, 130), (128, 256), (33, 416), (415, 416)])
def test_any_rows_are_decoded_by_themselves(first, stop):
    codes, exponents = drawn(416, 1056)
    whole = decoded(codes.float(), exponents)
    assert torch.equal(decoded(codes[first:stop].float(), exponents, first), whole[first:stop])
