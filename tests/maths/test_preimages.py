"""Which numbers can have become a rounded one, against every number of a type tried in turn."""

import pytest
import torch

from lora_inspect.maths.rounding import preimages, rounding_interval

pytestmark = pytest.mark.numeric

HALVES = [torch.bfloat16, torch.float16]


def every(dtype):
    """All finite numbers of a type of two bytes."""
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    return numbers[numbers.isfinite()]


@pytest.mark.parametrize("dtype", HALVES)
def test_the_interval_of_a_number_ends_in_the_middle_to_its_neighbours(dtype):
    numbers = every(dtype).double().unique()
    low, high = rounding_interval(numbers.to(dtype))
    middles = (numbers[:-1] + numbers[1:]) / 2
    assert torch.equal(low[1:], middles)
    assert torch.equal(high[:-1], middles)
    assert low[0] == numbers[0] - (middles[0] - numbers[0])
    assert high[-1] == numbers[-1] + (numbers[-1] - middles[-1])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("change", [0.0, 1e-3, -0.013, 0.37, 5.0, -1.0, 2.0**-9])
@pytest.mark.parametrize("slack", [0.0, 1e-6, 3e-3])
@pytest.mark.slow
def test_what_is_proved_is_what_alone_could_have_been_there(dtype, change, slack):
    possible = every(dtype)
    possible = possible[possible.abs() < 32].double().unique()
    merged = torch.randn(200, generator=torch.Generator().manual_seed(3)).to(dtype)
    merged = torch.cat([merged, (possible[possible.abs() < 16][::500] + change).to(dtype)])
    low, high = rounding_interval(merged)
    low, high = low - slack - change, high + slack - change
    fits = (possible[None] >= low[:, None]) & (possible[None] <= high[:, None])
    found = preimages(low, high, dtype)
    assert torch.equal(found.proved, fits.sum(1) == 1)
    assert torch.equal(found.impossible, fits.sum(1) == 0)
    alone = found.proved.nonzero().flatten()
    assert torch.equal(found.values[alone].double(), possible[fits[alone].double().argmax(1)])
    some = (~found.impossible).nonzero().flatten()
    assert (fits[some] & (possible[None] == found.values[some].double()[:, None])).any(1).all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_a_number_to_which_nothing_was_added_is_itself(dtype):
    merged = torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    merged[:2] = torch.tensor([0.0, -0.0])
    merged[2:4] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal])
    if dtype == torch.float64:
        return  # the middle of two numbers of float64 is none of float64
    found = preimages(*rounding_interval(merged), dtype)
    assert found.proved.all()
    assert torch.equal(found.values, merged)


def test_what_is_not_finite_is_never_proved():
    merged = torch.tensor([float("inf"), float("nan"), 1.0]).bfloat16()
    assert preimages(*rounding_interval(merged), torch.bfloat16).proved.tolist() == [False, False, True]
