"""MXFP4 against the function with which transformers unpacks gpt-oss, and against the definition in plain Python."""

import pytest
import torch

from lora_inspect.codecs.mxfp4 import decoded

transformers = pytest.importorskip("transformers.integrations.mxfp4")
pytestmark = pytest.mark.numeric

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
    # 6 · 2 ** 126 is beyond float32, in the program as well.
    exponents = torch.randint(0, 250, shape, dtype=torch.uint8, generator=generator)
    exponents.view(-1)[:2] = torch.tensor([0, 249])
    return blocks, exponents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_transformers_bit_for_bit(dtype):
    blocks, exponents = drawn(3, 64, 5)
    expected = transformers.convert_moe_packed_tensors(blocks, exponents, dtype=dtype)
    found = decoded(blocks, exponents, torch.empty(0, dtype=dtype))
    assert found.shape == (3, 64, 160)
    assert torch.equal(found.transpose(1, 2), expected)


def test_each_number_is_that_of_the_definition():
    blocks, exponents = drawn(2, 8, 3, seed=4)
    found = decoded(blocks, exponents, torch.empty(0))
    for expert, row, column in ((0, 0, 0), (0, 0, 1), (0, 7, 33), (1, 3, 94), (1, 7, 95)):
        byte = blocks[expert, row, column // 32, column % 32 // 2].item()
        code = byte & 15 if column % 2 == 0 else byte >> 4
        size = MAGNITUDES[code & 7] * 2.0 ** (exponents[expert, row, column // 32].item() - 127)
        assert found[expert, row, column].item() == (-size if code & 8 else size)


def test_the_first_of_two_is_in_the_lower_bits():
    blocks = torch.tensor([0xB2, 0x70] + [0] * 14, dtype=torch.uint8).view(1, 1, 16)
    found = decoded(blocks, torch.tensor([[128]], dtype=torch.uint8), torch.empty(0))
    assert found[0, :4].tolist() == [2.0, -3.0, 0.0, 12.0]
