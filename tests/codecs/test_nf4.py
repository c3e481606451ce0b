"""Four bits of bitsandbytes against the library in its own element types, and against its formula in plain Python."""

import pytest
import torch
from oracles import oracle

from lora_inspect.codecs.nf4 import Quantised, decoded, of_blocks

functional = oracle("bitsandbytes.functional")
# What the library computes where it has no kernel: its kernel for AVX512 (0.50) loses the place where a block begins in
# one row and ends in the next.
portable = oracle("bitsandbytes.backends.default.ops")
pytestmark = pytest.mark.numeric

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows that begin within a block, kernels, and more blocks than one of the second level has.
SHAPES = [(64, 128), (7, 50), (24, 4, 3, 3), (130, 160), (130, 256)]


def drawn(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def largest_of(state):
    """The largest magnitudes of all blocks of a weight that the library has made."""
    if not state.nested:
        return state.absmax
    second = state.state2
    return of_blocks(state.absmax, second.code, second.absmax, second.blocksize, state.offset.item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [64, 128])
def test_equals_the_library_bit_for_bit(shape, kind, nested, dtype, block):
    packed, state = functional.quantize_4bit(
        drawn(shape, dtype), blocksize=block, quant_type=kind, compress_statistics=nested
    )
    found = decoded(packed.flatten(), Quantised(state.code, largest_of(state), block)).view(shape)
    expected = portable._dequantize_4bit_compute(
        packed.flatten(), largest_of(state), state.code, block, shape, torch.float32
    )
    assert torch.equal(found, expected)
    if shape[-1] % block == 0:
        expected = functional.dequantize_4bit(packed, state)
        assert expected.dtype == dtype
        assert torch.equal(found.to(dtype), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_the_library_writes_is_near_the_weight(shape):
    weight = drawn(shape, torch.float32)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    found = decoded(packed.flatten(), Quantised(state.code, state.absmax, 64))
    wide = state.code.diff().max().item() / 2 + 1e-6
    largest = state.absmax.repeat_interleave(64)[: weight.numel()]
    assert ((found - weight.flatten()).abs() <= wide * largest).all()


def test_second_quantisation_equals_that_of_the_library():
    _, state = functional.quantize_4bit(drawn((256, 512), torch.float32), quant_type="nf4", compress_statistics=True)
    expected = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert state.absmax.numel() > 4 * state.state2.blocksize
    assert torch.equal(largest_of(state), expected)


def test_each_number_is_that_of_the_formula():
    # The quantiles of the normal distribution that the paper of QLoRA prints.
    table = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
             -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
             0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
             1.0)  # fmt: skip
    packed, state = functional.quantize_4bit(drawn((130, 160), torch.float32), quant_type="nf4")
    found = decoded(packed.flatten(), Quantised(state.code, state.absmax, 64)).view(130, 160)
    for place in (0, 1, 63, 64, 161, 9999, 20799):
        byte = packed.flatten()[place // 2].item()
        code = byte >> 4 if place % 2 == 0 else byte & 15
        exact = table[code] * state.absmax[place // 64].item()
        assert found.flatten()[place].item() == pytest.approx(exact, rel=2**-23, abs=0)


def test_nested_magnitudes_by_hand():
    codes = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    table = torch.zeros(256)
    table[:4] = torch.tensor([0.5, -0.25, 1.0, 0.0])
    found = of_blocks(codes, table, torch.tensor([2.0, 4.0]), 2, 0.125)
    assert found.tolist() == [1.125, -0.375, 4.125, 0.125]


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (3, 7), (64, 65), (1, 130), (129, 130)])
def test_any_rows_are_decoded_by_themselves(first, stop):
    columns = 50
    packed, state = functional.quantize_4bit(drawn((130, columns), torch.float32), quant_type="nf4")
    whole = decoded(packed.flatten(), Quantised(state.code, state.absmax, 64))
    own = packed.flatten()[first * columns // 2 : stop * columns // 2]
    found = decoded(own, Quantised(state.code, state.absmax, 64), first * columns)
    assert torch.equal(found, whole[first * columns : stop * columns])
