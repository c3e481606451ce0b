"""NVFP4 against comfy-kitchen in its own element types, and against the format's definition in plain Python."""

import pytest
import torch
from oracles import oracle

from lora_inspect.codecs.four_bits import padded
from lora_inspect.codecs.nvfp4 import Scales, decoded
from lora_inspect.files.safetensors.dtypes import decode_number

kitchen = oracle("comfy_kitchen")
pytestmark = pytest.mark.numeric

SHAPES = [(16, 16), (144, 80), (256, 512), (400, 1040)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# By the lower three of four bits.
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def drawn(out, inputs, seed=0):
    """Every byte of codes and every finite scale may occur; padding holds what must never be read."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (out, inputs // 2), dtype=torch.uint8, generator=generator)
    tiles = torch.randint(0, 255, padded(out, inputs // 16), dtype=torch.uint8, generator=generator)
    tiles[tiles & 0x7F == 0x7F] = 0
    return packed, tiles.view(torch.float8_e4m3fn), torch.rand((), generator=generator) * 1e-3


def bits(tensor):
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_equals_comfy_kitchen_bit_for_bit(out, inputs, dtype):
    packed, tiles, scale = drawn(out, inputs)
    expected = kitchen.dequantize_nvfp4(packed, scale, tiles, dtype)
    assert torch.equal(bits(decoded(packed, Scales(tiles, scale.to(dtype)))), bits(expected))


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_reads_what_comfy_kitchen_writes(out, inputs):
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(3)) / 8
    scale = weight.abs().max() / (448 * 6)
    packed, tiles = kitchen.quantize_nvfp4(weight, scale)
    found = decoded(packed, Scales(tiles, scale))
    assert torch.equal(found, kitchen.dequantize_nvfp4(packed, scale, tiles, torch.float32))
    # The widest gap of E2M1 is 2 of 6, half of which is missed at most, and its scale is rounded by 2 ** -4.
    largest = weight.view(out, -1, 16).abs().amax(-1, keepdim=True)
    assert ((found - weight).view(out, -1, 16).abs() <= largest * (1 / 6 + 2**-4) + scale * 2**-9 * 6).all()


def test_each_number_is_that_of_the_definition():
    packed, tiles, scale = drawn(160, 48, seed=4)
    found = decoded(packed, Scales(tiles, scale))
    flat = tiles.view(torch.uint8).flatten()
    for row, column in ((0, 0), (0, 1), (31, 17), (32, 16), (95, 47), (128, 3), (159, 46)):
        byte = packed[row, column // 2].item()
        code = byte >> 4 if column % 2 == 0 else byte & 15
        # One tile beside another: 48 inputs are three blocks.
        place = row // 128 * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column // 16
        of_block = decode_number("F8_E4M3", bytes([flat[place].item()]))
        exact = (-1 if code & 8 else 1) * MAGNITUDES[code & 7] * of_block * scale.item()
        assert found[row, column].item() == pytest.approx(exact, rel=2**-23, abs=0)


def test_the_first_of_two_is_in_the_upper_bits():
    packed = torch.zeros(16, 8, dtype=torch.uint8)
    packed[0, 0], packed[0, 1] = 0x2B, 0x07
    tiles = torch.zeros(128, 4, dtype=torch.uint8)
    tiles[0, 0] = 0x40  # 2.0
    found = decoded(packed, Scales(tiles.view(torch.float8_e4m3fn), torch.tensor(0.25)))
    assert found[0, :4].tolist() == [0.5, -0.75, 0.0, 3.0]


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (127, 130), (128, 256), (33, 400), (399, 400)])
def test_any_rows_are_decoded_by_themselves(first, stop):
    packed, tiles, scale = drawn(400, 1040)
    whole = decoded(packed, Scales(tiles, scale))
    assert torch.equal(bits(decoded(packed[first:stop], Scales(tiles, scale), first)), bits(whole[first:stop]))
