"""Stochastic rounding: to a neighbour on the grid, unbiased, by the seed, the name and the place alone."""

import math

import pytest
import torch
from adapters import drawn

from lora_inspect.maths.rounding import ROUNDED, StochasticRounding, spacing
from lora_inspect.maths.tensors import STORED_DTYPES

pytestmark = pytest.mark.numeric
FLOATS = ["BF16", "F16", "F8_E4M3", "F8_E5M2"]
# Six standard errors are met by chance once in 10^9 times.
SIGMAS = 6


def distance(values, dtype):
    return torch.ones_like(values) if dtype == "I8" else spacing(values, dtype)


def on_grid(values, dtype):
    return values.round() if dtype == "I8" else values.to(STORED_DTYPES[dtype]).to(values.dtype)


def sizes(dtype, count=20_000):
    """Numbers of every size that the grid has, subnormal ones and 0 too; none beyond its ends."""
    if dtype == "I8":
        return 127 * (2 * torch.rand(count, generator=torch.Generator().manual_seed(3)) - 1)
    spread = drawn(1, count) * 2.0 ** torch.randint(-20, 8, (count,), generator=torch.Generator().manual_seed(2))
    end = torch.finfo(STORED_DTYPES[dtype]).max
    return torch.cat([spread.clamp(-end, end), torch.zeros(3)])


@pytest.mark.parametrize("dtype", sorted(ROUNDED))
def test_it_goes_to_one_of_the_two_numbers_beside(dtype):
    values = sizes(dtype)
    found = StochasticRounding(1, "a").rounded(values.clone(), dtype, 0)
    assert torch.equal(found, on_grid(found, dtype))
    assert ((found - values).abs() < distance(values, dtype)).all()
    nearest = on_grid(values, dtype)
    assert (found != nearest).float().mean() > 0.15  # a quarter, but of what lies on the grid


@pytest.mark.parametrize("dtype", sorted(ROUNDED))
def test_what_lies_on_the_grid_stays(dtype):
    values = on_grid(sizes(dtype), dtype)
    for seed in range(8):
        assert torch.equal(StochasticRounding(seed, "a").rounded(values.clone(), dtype, 0), values)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_every_code_stays(stored):
    """The whole number -128 too, which is farther from 0 than any other."""
    codes = torch.arange(256).to(torch.uint8).view(stored).float()
    codes = codes[codes.isfinite()]
    dtype = {of: name for name, of in STORED_DTYPES.items()}.get(stored, "I8")
    for seed in range(8):
        assert torch.equal(StochasticRounding(seed, "a").rounded(codes.clone(), dtype, 0), codes)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8"])
def test_codes_that_a_scale_was_multiplied_by_and_taken_from_again_stay(dtype):
    values = on_grid(sizes(dtype), dtype)
    for seed in range(8):
        scale = (0.001 + drawn(seed, 1).abs()) / 300
        again = (values * scale) / scale
        assert torch.equal(StochasticRounding(seed, "a").rounded(again, dtype, 0), values)


@pytest.mark.parametrize("dtype", sorted(ROUNDED))
@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("number", [1.5, -3.0, 0.0])
def test_the_mean_is_the_number_itself(dtype, part, number):
    """Over 200,000 draws, whose mean has a standard error of sqrt(part · (1 - part) / draws) distances."""
    draws = 200_000
    unit = float(distance(torch.tensor([number]), dtype))
    number = round(number) if dtype == "I8" else number
    value = torch.tensor([number + part * unit]).float()
    part = float((value.double() - number) / unit)
    found = StochasticRounding(7, "a").rounded(value.repeat(draws), dtype, 0).double()
    error = math.sqrt(part * (1 - part) / draws)
    assert abs((found.mean() - number) / unit - part) < SIGMAS * error + 2.0**-16


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_noise_is_that_of_its_definition(dtype):
    """The variance at a part p of the distance is p · (1 - p) squares of it: a sixth on average."""
    values = 1 + torch.rand(100_000, generator=torch.Generator().manual_seed(5))
    found = StochasticRounding(7, "a").rounded(values.clone(), dtype, 0)
    squares = ((found - values) / spacing(values, dtype)).double().square()
    assert abs(squares.mean() - 1 / 6) < SIGMAS * squares.std() / 100_000**0.5


@pytest.mark.parametrize("columns", [7, 48])
def test_blocks_may_come_in_any_size_and_order(columns):
    values = drawn(1, 3000, columns)
    whole = StochasticRounding(3, "layer.weight").rounded(values.clone(), "BF16", 0)
    other = StochasticRounding(3, "layer.weight")
    for rows in (1, 13, 1000):
        found = torch.empty_like(values)
        for first in reversed(range(0, 3000, rows)):
            found[first : first + rows] = other.rounded(values[first : first + rows].clone(), "BF16", first * columns)
        assert torch.equal(found, whole)


def test_seeds_and_names_draw_for_themselves():
    count = 100_000
    values = torch.full((count,), 1 + 2.0**-8)  # halfway between two numbers
    draws = [(1, "a"), (2, "a"), (1, "b"), (1, "\ud800"), (-1, "a"), (2**80, "a")]
    ups = [(StochasticRounding(*own).rounded(values.clone(), "BF16", 0) > 1).double() - 0.5 for own in draws]
    for number, one in enumerate(ups):
        for other in ups[:number]:
            assert abs((one * other).mean()) < SIGMAS * 0.25 / count**0.5
    again = StochasticRounding(1, "a").rounded(values.clone(), "BF16", 0)
    assert torch.equal((again > 1).double() - 0.5, ups[0])


def test_neighbours_and_rows_draw_for_themselves():
    """The errors of entries that are 1, 2, … or a row apart have nothing to do with each other."""
    count = 1 << 20
    values = torch.full((count,), 1 + 2.0**-8)
    found = (StochasticRounding(11, "a").rounded(values.clone(), "BF16", 0) > values).double() - 0.5
    assert abs(found.mean()) < SIGMAS * 0.5 / count**0.5
    for lag in (1, 2, 3, 4, 8, 16, 64, 384, 768, 1024, 1536, 2048, 4096, 8192, 65536):
        assert abs((found[lag:] * found[:-lag]).mean()) < SIGMAS * 0.25 / (count - lag) ** 0.5


def test_all_bits_are_drawn_evenly():
    """A part of 2^-k goes up once in 2^k times."""
    count = 1 << 20
    for bits in range(1, 13):
        values = torch.full((count,), 1 + 2.0 ** -(7 + bits))
        ups = (StochasticRounding(bits, "a").rounded(values.clone(), "BF16", 0) > values).double().sum()
        expected = count * 2.0**-bits
        assert abs(ups - expected) < SIGMAS * expected**0.5


@pytest.mark.parametrize("dtype", sorted(ROUNDED))
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so(dtype, bad):
    values = torch.tensor([0.1, bad, 3.7])
    found = StochasticRounding(1, "a").rounded(values.clone(), dtype, 0)
    assert torch.equal(found.nan_to_num(5), values.nan_to_num(5))


def test_the_bits_of_a_nan_never_overflow():
    values = torch.tensor([0x7FFFFFFF, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    assert StochasticRounding(1, "a").rounded(values, "BF16", 0).isnan().all()


def test_large_numbers_whose_sum_is_not_finite_are_rounded():
    values = torch.full((1000,), 1.0039e38)
    found = StochasticRounding(1, "a").rounded(values.clone(), "BF16", 0)
    assert len(found.unique()) == 2


@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("F8_E4M3", -448.0, 448.0), ("F8_E5M2", -57344.0, 57344.0), ("I8", -128.0, 127.0)]
)
def test_no_number_goes_beyond_the_last_code(dtype, least, most):
    ends = torch.tensor([most, least]).repeat(500)
    for beyond in (1.0, 1.003):
        assert torch.equal(StochasticRounding(1, "a").rounded(ends * beyond, dtype, 0), ends)


def test_what_float32_holds_as_it_is_is_not_rounded():
    values = drawn(1, 50)
    assert torch.equal(StochasticRounding(1, "a").rounded(values.clone(), "F32", 0), values)


def test_a_weight_in_float64_goes_through_float32():
    values = drawn(1, 50).double()
    found = StochasticRounding(1, "a").rounded(values, "BF16", 0)
    assert found.dtype == torch.float32
    assert torch.equal(found, StochasticRounding(1, "a").rounded(values.float(), "BF16", 0))


def test_a_block_of_nothing_is_nothing():
    assert StochasticRounding(1, "a").rounded(torch.empty(0, 4), "BF16", 0).shape == (0, 4)
