"""fp8 and int8 as comfy-kitchen has them, which computes them in ComfyUI."""

import pytest
import torch
from oracles import oracle

from lora_inspect.codecs import int8, weight_scale
from lora_inspect.codecs.record import CodedTensor
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.tensors import numbers_of, stored_as

kitchen = oracle("comfy_kitchen")
pytestmark = pytest.mark.numeric

NAME = "weight_scale"
STORED = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8"}
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
OUT, IN = 96, 160
HALVES = (torch.bfloat16, torch.float16)


def eager():
    """What runs on every processor."""
    return kitchen.use_backend("eager")


def codec_of(dtype):
    return int8.CODEC if dtype == torch.int8 else weight_scale.CODEC


def state_of(codes, scale):
    info, beside = (TensorInfo("", STORED.get(t.dtype, "F32"), tuple(t.shape), "", 0, 0) for t in (codes, scale))
    codec = codec_of(codes.dtype)
    return codec.prepared({NAME: scale}, codec.layout(CodedTensor(info, {NAME: beside}, {}, lambda info: b"")))


def decoded(codes, scale):
    rows = torch.empty(codes.shape)
    codec_of(codes.dtype).decode(numbers_of(codes, rows), state_of(codes, scale), 0, rows)
    return rows


def written(weight, codes, scale):
    """The codes and the scale of a whole weight that takes the place of `codes`."""
    encoding = codec_of(codes.dtype).encoding(state_of(codes, scale))
    rows = weight.clone()
    settled = encoding.settled(encoding.extremes(rows, 0), 0)
    encoding.numbers(rows, settled, 0)
    return stored_as(rows, torch.empty_like(codes)), encoding.settings([settled])[NAME]


def every_code(dtype, width=IN):
    codes = torch.arange(OUT * width).remainder(256).to(torch.uint8).view(dtype).view(OUT, width)
    return torch.where(codes.float().isfinite(), codes.float(), torch.zeros(())).to(dtype)


def numbers(seed, size=1.0):
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed)).mul_(size)


def same_bits(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    return one.flatten().view(torch.uint8).equal(other.flatten().view(torch.uint8))


@pytest.mark.parametrize("scale", [1.0, 0.0371, 3e-5, 2.0**-9])
@pytest.mark.parametrize("dtype", FP8)
def test_fp8_is_decoded_bit_for_bit(dtype, scale):
    codes, number = every_code(dtype), torch.tensor(scale)
    with eager():
        theirs = kitchen.dequantize_per_tensor_fp8(codes, number, torch.float32)
    assert same_bits(decoded(codes, number), theirs)


@pytest.mark.parametrize("into", HALVES)
@pytest.mark.parametrize("dtype", FP8)
def test_fp8_is_decoded_bit_for_bit_in_half_precision(dtype, into):
    """The scale is rounded first there, so that it has to be a number of that type."""
    codes, number = every_code(dtype), torch.tensor(0.0371).to(into)
    with eager():
        theirs = kitchen.dequantize_per_tensor_fp8(codes, number.float(), into)
    assert same_bits(decoded(codes, number).to(into), theirs)


@pytest.mark.parametrize("shape", [(), (OUT, 1)])
def test_int8_is_decoded_bit_for_bit(shape):
    codes = every_code(torch.int8)
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)).add_(0.01)
    with eager():
        theirs = torch.ops.comfy_kitchen.dequantize_int8_simple(codes, scale)
    assert same_bits(decoded(codes, scale), theirs)
    for code, into in ((1, torch.float16), (2, torch.bfloat16)):
        with eager():
            theirs = torch.ops.comfy_kitchen.dequantize_int8_simple_dtype(codes, scale, code)
        assert same_bits(decoded(codes, scale).to(into), theirs)


@pytest.mark.parametrize("size", [0.02, 1.0, 300.0])
@pytest.mark.parametrize("dtype", FP8)
def test_a_weight_that_it_made_keeps_its_codes(dtype, size):
    """What it made of a weight is decoded and written again, and the scale that it chose stays."""
    layout = kitchen.tensor.TensorCoreFP8Layout
    with eager():
        codes, params = layout.quantize(numbers(2, size), dtype=dtype)
    again, scale = written(decoded(codes, params.scale), codes, params.scale)
    assert same_bits(again, codes)
    assert same_bits(scale, params.scale)


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_int8_weight_that_it_made_keeps_its_codes(per_channel):
    layout = kitchen.tensor.TensorWiseINT8Layout
    with eager():
        codes, params = layout.quantize(numbers(3, 0.02), per_channel=per_channel)
    again, scale = written(decoded(codes, params.scale), codes, params.scale)
    assert same_bits(again, codes)
    assert same_bits(scale, params.scale)


@pytest.mark.parametrize("size", [0.02, 1.0, 300.0])
@pytest.mark.parametrize("dtype", [*FP8, torch.int8])
def test_a_fresh_scale_is_the_one_that_it_chooses(dtype, size):
    """To the last bit or one beside it, as ours holds the largest number; the codes are those under either scale."""
    weight, tiny = numbers(4, size), torch.tensor(1e-9)
    codes, scale = written(weight, torch.zeros(OUT, IN).to(dtype), tiny)
    with eager():
        if dtype == torch.int8:
            _, chosen = torch.ops.comfy_kitchen.quantize_int8_tensorwise(weight)
            again, _ = kitchen.backends.eager.quantization.quantize_int8_tensorwise(weight, scale)
        else:
            chosen = weight.abs().amax() / torch.finfo(dtype).max
            again = kitchen.quantize_per_tensor_fp8(weight, scale, dtype)
    assert abs(scale.item() / chosen.item() - 1) <= 2.0**-23
    assert scale >= chosen * (1 - 2.0**-24)
    # It multiplies by the rounded reciprocal of the scale: what lies next to the middle of two codes may go either way.
    differ = again.float() != codes.float()
    exact = (weight.double() / scale.double())[differ]
    middle = (again.double() + codes.double())[differ] / 2
    assert ((exact - middle).abs() <= exact.abs() * 2.0**-22).all()
    assert differ.float().mean() < 1e-3
