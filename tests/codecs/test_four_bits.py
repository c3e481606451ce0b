"""Two numbers in a byte: which is the first, and the 16 numbers of E2M1 by their bits."""

import pytest
import torch

from lora_inspect.codecs.four_bits import E2M1, unpacked

pytestmark = pytest.mark.numeric


def by_bits(code):
    """A sign, two bits of an exponent with the bias 1 and one of a mantissa, without a hidden one below the least."""
    exponent, mantissa = code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if code & 8 else size


def test_the_numbers_are_those_of_the_bits():
    assert [(str(number), number) for number in E2M1] == [(str(by_bits(code)), by_bits(code)) for code in range(16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("high_first", [True, False])
def test_every_byte_is_its_two_numbers_in_their_order(high_first, dtype):
    packed = torch.arange(256, dtype=torch.uint8).view(2, 4, 32)
    numbers = torch.arange(16, dtype=dtype)
    found = unpacked(packed, numbers, high_first)
    assert found.dtype == dtype
    halves = [(byte >> 4, byte & 15) for byte in range(256)]
    ordered = [pair if high_first else pair[::-1] for pair in halves]
    assert found.tolist() == torch.tensor(ordered, dtype=dtype).view(2, 4, 64).tolist()
