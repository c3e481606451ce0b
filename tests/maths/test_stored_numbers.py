"""Numbers of every floating type to and from numpy, against torch and against exact rounding in float64."""

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.files.safetensors.header import read_header
from lora_inspect.maths.stored_numbers import (
    decoded,
    encoded,
    encoded_in_place,
    load,
    load_into,
    rounded,
    stored_pieces,
)

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EIGHT_BITS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
# Ties of bfloat16 and what is barely beside them, the largest numbers, and those below the normal ones.
EDGES = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-30, 1 + 2**-8 - 2**-30, -(1 + 2**-8 + 2**-40),
         3.3895313892515355e38, 3.3961775e38, 3.4e38, 65504.0, 65520.0, 1e-41, 2.0**-134, 2.0**-134 + 2.0**-170,
         2.0**-24, 2.0**-25, numpy.inf, -numpy.inf]  # fmt: skip


def nearest(values, bits, least, largest):
    """The nearest numbers with so many bits, half to even: of `numpy.rint`, on multiples of the last place."""
    exponents = numpy.maximum(numpy.frexp(values)[1], least)
    found = numpy.ldexp(numpy.rint(numpy.ldexp(values, bits - exponents)), exponents - bits)
    return numpy.where(numpy.abs(found) > largest, numpy.copysign(numpy.inf, values), found)


ROUNDED = {
    "BF16": lambda values: nearest(values, 8, -125, 3.3895313892515355e38),
    "F16": lambda values: nearest(values, 11, -13, 65504.0),
    "F32": lambda values: nearest(values, 24, -125, 3.4028234663852886e38),
    "F64": lambda values: values,
}


def many(seed=0):
    rng = numpy.random.default_rng(seed)
    return numpy.concatenate([rng.standard_normal(200_000) * 10.0 ** rng.uniform(-45, 39, 200_000), EDGES])


@pytest.mark.parametrize("dtype", ROUNDED)
def test_numbers_of_float64_are_rounded_once(dtype):
    values = many()
    with numpy.errstate(all="ignore"):
        meant = ROUNDED[dtype](values)
    assert numpy.array_equal(rounded(values, dtype).astype(float), meant)


@pytest.mark.parametrize("dtype", TORCH)
def test_numbers_of_float32_are_rounded_as_torch_rounds_them(dtype):
    with numpy.errstate(over="ignore"):
        values = many(1).astype(numpy.float32)
    meant = torch.from_numpy(values).to(TORCH[dtype])
    assert encoded(values, dtype).tobytes() == meant.view(torch.uint8).numpy().tobytes()


@given(st.floats(width=64))
def test_any_number_is_rounded_once(value):
    found = float(rounded(numpy.array([value]), "BF16")[0])
    with numpy.errstate(all="ignore"):
        meant = float(ROUNDED["BF16"](numpy.array([value]))[0]) if value == value else value
    assert found == meant or (found != found and meant != meant)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_code_is_read_as_torch_reads_it(dtype):
    codes = numpy.arange(1 << 16, dtype="<u2")
    meant = torch.from_numpy(codes.view(numpy.int16)).view(TORCH[dtype]).float().numpy()
    assert numpy.array_equal(decoded(dtype, codes.tobytes()), meant, equal_nan=True)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_every_code_of_eight_bits_is_read_as_torch_reads_it(dtype):
    codes = numpy.arange(256, dtype=numpy.uint8)
    meant = torch.from_numpy(codes).view(EIGHT_BITS[dtype]).float().numpy()
    assert numpy.array_equal(decoded(dtype, codes.tobytes()), meant, equal_nan=True)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_is_no_number_stays_so(dtype):
    words = numpy.array([0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFF800001], dtype=numpy.uint32)
    assert numpy.isnan(rounded(words.view(numpy.float32), dtype)).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 1)])
def test_a_tensor_is_loaded_in_its_shape(shape, write_safetensors):
    tensors, _ = read_header(str(write_safetensors({"a": ("BF16", shape, 1.5)})))
    found = load(tensors["a"])
    assert (found.shape, found.dtype) == (shape, numpy.float32)
    assert (found == 1.5).all()


def test_a_large_tensor_comes_in_pieces(write_safetensors):
    count = (1 << 22) + 5
    data = numpy.arange(count, dtype="<u2").tobytes()
    tensors, _ = read_header(str(write_safetensors({"a": ("BF16", (count,), data)})))
    pieces = list(stored_pieces(tensors["a"]))
    assert len(pieces) == 2
    assert sum(size for size, _ in pieces) == 2 * count
    whole = numpy.concatenate([piece for _, piece in pieces])
    assert numpy.array_equal(whole, decoded("BF16", data), equal_nan=True)


@pytest.mark.parametrize("kind", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("dtype", ROUNDED)
def test_numbers_become_those_that_their_codes_stand_for(dtype, kind):
    with numpy.errstate(over="ignore"):
        values = many(2).astype(kind)
        meant = ROUNDED[dtype](values.astype(float)).astype(kind)
    codes = encoded(values, dtype).copy()
    found = encoded_in_place(values, dtype)
    assert found.tobytes() == codes.tobytes()
    assert numpy.array_equal(values, meant)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_numbers_that_do_not_lie_in_a_row_become_those_of_their_codes(dtype):
    with numpy.errstate(over="ignore"):
        values = many(3).astype(numpy.float32)[:6000].reshape(6, 1000)
        codes, meant = encoded(values.T, dtype).copy(), rounded(values.T, dtype)
        found = encoded_in_place(turned := values.T, dtype)
    assert found.tobytes() == codes.tobytes()
    assert numpy.array_equal(turned, meant)


@pytest.mark.parametrize("kind", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("dtype", TORCH)
def test_a_tensor_is_loaded_into_columns_of_a_matrix(dtype, kind, write_safetensors):
    values = torch.randn(3, 5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(TORCH[dtype])
    data = values.view(torch.uint8).numpy().tobytes()
    tensors, _ = read_header(str(write_safetensors({"a": (dtype, tuple(values.shape), data)})))
    matrix = numpy.full((3, 24), 7.0, kind)
    load_into(tensors["a"], matrix[:, 2:22])
    assert numpy.array_equal(matrix[:, 2:22], values.to(getattr(torch, kind.__name__)).reshape(3, 20).numpy())
    assert (matrix[:, [0, 1, 22, 23]] == 7.0).all()


def test_a_large_tensor_is_loaded_into_a_matrix_by_pieces(write_safetensors, monkeypatch):
    monkeypatch.setattr("lora_inspect.maths.stored_numbers._CHUNK_BYTES", 50)
    data = numpy.arange(70, dtype="<u2")
    tensors, _ = read_header(str(write_safetensors({"a": ("BF16", (10, 7), data.tobytes())})))
    matrix = numpy.zeros((10, 7), numpy.float32)
    load_into(tensors["a"], matrix)
    assert numpy.array_equal(matrix, decoded("BF16", data.tobytes()).reshape(10, 7))
