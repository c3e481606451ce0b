"""The numbers of element types: torch's own next number says how far apart they are."""

import pytest
import torch

from lora_inspect.files.safetensors.dtypes import GRIDS
from lora_inspect.maths.rounding import grid_of, rounded, spacing
from lora_inspect.maths.tensors import STORED_DTYPES

VALUES = torch.tensor([1.0, 1.5, 1.99, 2.0, 3.7, 0.013, 0.02, 1e-3, 2.0**-7, 2.0**-15, 1e-9, 300.0])


@pytest.mark.parametrize("dtype", [name for name in GRIDS if name != "I8"])
@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_the_distance_is_the_smallest_that_rounding_keeps(dtype, working):
    values = VALUES.to(working).to(STORED_DTYPES[dtype]).to(working)
    values = values[values != 0]
    values = torch.cat([values, -values])
    own = torch.finfo(STORED_DTYPES[dtype])
    for value, distance in zip(values.double(), spacing(values, dtype).double(), strict=True):
        power = 2.0 ** torch.floor(torch.log2(value.abs()))
        assert distance == max(float(power) * own.eps, own.tiny * own.eps if dtype != "F32" else 2.0**-149)


def test_zero_has_the_distance_of_the_least_numbers():
    assert spacing(torch.zeros(1), "F16") == 2.0**-24
    assert spacing(torch.zeros(1), "F8_E4M3") == 2.0**-9


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_rounding_stays_among_finite_numbers(dtype):
    largest = torch.finfo(STORED_DTYPES[dtype]).max
    assert rounded(torch.tensor([3.4e38, -3.4e38]), dtype).tolist() == [largest, -largest]
    assert rounded(VALUES[:5], dtype).tolist() == VALUES[:5].to(STORED_DTYPES[dtype]).float().tolist()


@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_whole_numbers_lie_one_apart(working):
    every = torch.arange(-128, 128).to(working)
    assert spacing(every, "I8").tolist() == [1.0] * 256
    assert rounded(every, "I8").tolist() == every.tolist()
    between = torch.tensor([0.5, 1.5, -2.5, 126.6, 300.0, -300.0], dtype=working)
    assert rounded(between, "I8").tolist() == [0, 2, -2, 127, 127, -128]


def test_the_coarsest_type_that_holds_all_numbers_is_found():
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    assert grid_of(values, "F32") == "F32"
    assert grid_of(values.bfloat16().float(), "F32") == "BF16"
    assert grid_of(values.half().float(), "F32") == "F16"
    assert grid_of(values.double(), "F64") == "F32"
    assert grid_of(values.bfloat16().float(), "F16") == "BF16"
    assert grid_of(values.bfloat16().float(), "BF16") == "BF16"
    last = values.bfloat16().float()
    last[-1, -1] = 1 / 3
    assert grid_of(last, "F32") == "F32"
