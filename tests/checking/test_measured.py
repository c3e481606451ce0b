"""What the numbers of a tensor amount to, against numpy and torch over the whole of it."""

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.checking import measured
from lora_inspect.checking.measured import measure, product_rms
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.maths import stored_numbers
from lora_inspect.progress import silent

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def write(tmp_path, **tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    return read_header(str(tmp_path / "a.safetensors"))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_are_those_of_torch_in_every_type(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_numbers, "_CHUNK_BYTES", 64)
    source = torch.Generator().manual_seed(3)
    numbers = torch.randn(7, 31, generator=source) * torch.logspace(-9, 9, 31)
    numbers[0, :4] = torch.tensor([0.0, -0.0, float("nan"), float("inf")])
    tensor = numbers.to(dtype)
    told: list[int] = []
    found = measure(write(tmp_path, a=tensor)["a"], told.append)
    wide = tensor.double()
    finite = wide[wide.isfinite()]
    assert found == (
        tensor.numel(),
        int((~wide.isfinite()).sum()),
        int((finite != 0).sum()),
        int(((finite != 0) & (finite.abs() < torch.finfo(torch.float16).smallest_normal)).sum()),
        int((finite.abs() > torch.finfo(torch.float16).max).sum()),
        int((finite < 0).sum()),
    )
    assert sum(told) == tensor.numel() * tensor.itemsize


def test_whole_numbers_and_nothing_have_no_counts(tmp_path):
    tensors = write(tmp_path, a=torch.zeros(3, dtype=torch.int64), b=torch.zeros(0))
    assert {measure(info, silent).numbers for info in tensors.values()} == {0}
    assert not any(measure(info, silent).is_zero for info in tensors.values())


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_the_size_of_a_product_is_that_of_the_product(kernel, tmp_path):
    source = torch.Generator().manual_seed(5)
    up, down = torch.randn(20, 4, generator=source), torch.randn(4, 12, *kernel, generator=source)
    tensors = write(tmp_path, up=up, down=down)
    product = up.double() @ down.double().flatten(1)
    assert product_rms(tensors["up"], tensors["down"]) == pytest.approx(product.square().mean().sqrt().item())


def test_factors_that_are_too_large_to_hold_are_not_multiplied(tmp_path, monkeypatch):
    tensors = write(tmp_path, up=torch.ones(20, 4), down=torch.ones(4, 12))
    assert product_rms(tensors["up"], tensors["down"]) == 4.0
    for bound, value in (("_LARGEST_FACTOR", 100), ("_LARGEST_RANK", 3)):
        with monkeypatch.context() as patched:
            patched.setattr(measured, bound, value)
            assert product_rms(tensors["up"], tensors["down"]) is None
