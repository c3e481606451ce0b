"""approximate: the error against Eckart-Young's least one, from a dense decomposition in float64."""

import math
from pathlib import Path

import pytest
import torch

from lora_inspect.maths import low_rank
from lora_inspect.maths.low_rank import BOUND, approximate

pytestmark = pytest.mark.numeric


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator(seed), dtype=torch.float64)


def spectrum(values: torch.Tensor, rows: int, columns: int, seed: int) -> torch.Tensor:
    left = torch.linalg.qr(noise(rows, len(values), seed)).Q
    right = torch.linalg.qr(noise(columns, len(values), seed + 1000)).Q
    return (left * values.double()) @ right.T


MATRICES = {
    "flat": lambda seed: noise(300, 420, seed),
    "tall": lambda seed: noise(420, 300, seed),
    "falling slowly": lambda seed: spectrum(0.98 ** torch.arange(256.0), 256, 320, seed),
    "falling as 1/n": lambda seed: spectrum(1 / torch.arange(1.0, 257.0), 320, 256, seed),
    "low rank and noise": lambda seed: spectrum(torch.ones(8), 300, 300, seed) + 1e-3 * noise(300, 300, seed + 1),
    "two plateaus": lambda seed: spectrum(torch.tensor([1.0] * 40 + [0.5] * 160), 240, 260, seed),
    "wide": lambda seed: noise(3, 500, seed),
    # Rows of a weight that are scaled a little differently, beside a strong delta: what DoRA does.
    "dora": lambda seed: (
        1e-2 * noise(320, 1, seed) * noise(320, 384, seed + 1) + 0.1 * noise(320, 4, seed + 2) @ noise(4, 384, seed + 3)
    ),
}
SEEDS = range(3)
RANKS = [1, 2, 8, 24, 32, 100, 250]


def least_errors(matrix: torch.Tensor) -> list[float]:
    """Eckart-Young for every rank, by a dense decomposition; entries near 1 on the way, so that no square overflows."""
    squares = torch.linalg.svdvals(matrix.double() / matrix.abs().max().double()).square()
    return [float((squares[rank:].sum() / squares.sum()).sqrt()) for rank in range(min(matrix.shape) + 1)]


def least_error(matrix: torch.Tensor, rank: int) -> float:
    return least_errors(matrix)[min(rank, *matrix.shape)]


def error_of(matrix: torch.Tensor, found: low_rank.Approximation) -> float:
    size = matrix.abs().max().double()
    product = (found.up.double() / size.sqrt()) @ (found.down.double() / size.sqrt())
    return float((matrix.double() / size - product).norm() / (matrix.double() / size).norm())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MATRICES)
def test_the_error_is_within_the_bound_of_the_least(name, dtype, seed):
    matrix = MATRICES[name](seed).to(dtype)
    least = least_errors(matrix)
    for rank in RANKS:
        found = approximate(matrix, rank=rank)
        assert found.rank <= rank
        assert found.up.shape == (matrix.shape[0], found.rank)
        assert found.down.shape == (found.rank, matrix.shape[1])
        assert (found.up.dtype, found.down.dtype) == (dtype, dtype)
        error = error_of(matrix, found)
        assert found.relative_error == pytest.approx(error, rel=1e-6, abs=1e-12)
        # Values that are left out as the rounding of float32 are below 1e-7 of the largest each.
        rounding = 2.0**-23 * math.sqrt(rank) if dtype == torch.float32 else 1e-12
        expected = least[min(rank, *matrix.shape)]
        left_out = 1e-7 * math.sqrt(min(matrix.shape)) if expected < 1e-6 else 0.0
        assert error <= BOUND * expected + rounding + left_out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bound", [0.9, 0.3, 0.05, 0.01])
@pytest.mark.parametrize("name", MATRICES)
def test_finds_the_least_rank_for_an_error(name, bound, seed):
    matrix = MATRICES[name](seed)
    found = approximate(matrix, max_error=bound)
    assert found.relative_error <= bound * (1 + 1e-9)
    assert found.rank == 1 or least_error(matrix, found.rank - 1) > bound * (1 - 1e-9)


def test_the_documented_bound_is_the_one_that_is_proved():
    page = (Path(__file__).parents[2] / "docs" / "dora.md").read_text(encoding="utf-8")
    assert f"at most {BOUND:g} times as far from it as the best one of its rank" in page


def test_a_start_that_cannot_see_the_largest_values_is_found_out(monkeypatch):
    """A Krylov basis that settles on the wrong values is no convergence, whatever the next block changes."""
    sizes = torch.cat([torch.full((4,), 1.5), torch.linspace(1.0, 0.5, 396)]).double()
    matrix = torch.diag(sizes)
    blind = noise(400, 4 + low_rank._OVERSAMPLING, 0)
    blind[:4] = 0
    monkeypatch.setattr(torch, "randn", lambda *size, **_: blind)
    found = approximate(matrix, rank=4)
    assert found.relative_error <= BOUND * least_error(matrix, 4)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("directions", [1, 2, 4, 10, 20])
@pytest.mark.parametrize("made_of", ["rows", "signs"])
def test_a_matrix_with_no_more_directions_is_not_counted_twice(made_of, directions, rank):
    """A block that adds nothing to the basis is rounding, and singular values under it would be found again."""
    if made_of == "rows":
        matrix = torch.zeros(400, 400)
        matrix[range(directions), range(directions)] = 2.0 ** torch.arange(directions)
    else:
        matrix = (noise(400, directions, 0).sign() @ noise(directions, 410, 1).sign()).float()
    found = approximate(matrix, rank=rank)
    assert error_of(matrix, found) <= BOUND * least_error(matrix, rank) + 2.0**-23 * math.sqrt(rank)


def test_the_error_is_that_of_the_factors_as_they_are_rounded():
    matrix = noise(40, 30, 0)
    found = approximate(matrix, rank=30, dtype=torch.float32)
    assert (found.up.dtype, found.down.dtype) == (torch.float32, torch.float32)
    assert 1e-9 < found.relative_error < 1e-6
    assert found.relative_error == pytest.approx(error_of(matrix, found), rel=1e-6)


@pytest.mark.parametrize("size", [1e-300, 1e-38, 1e19, 1e37, 1e150, 1e300])
@pytest.mark.parametrize("choice", [{"rank": 1}, {"rank": 6}, {"rank": 50}, {"max_error": 0.4}], ids=str)
def test_the_size_of_the_numbers_does_not_matter(size, choice):
    matrix = noise(120, 130, 3) * size
    if 1e-40 < size < 1e38:
        matrix = matrix.float()
    found = approximate(matrix, **choice)
    assert torch.isfinite(found.up).all()
    assert torch.isfinite(found.down).all()
    assert error_of(matrix, found) <= BOUND * least_error(matrix, found.rank) + 1e-6
    assert found.relative_error == pytest.approx(error_of(matrix, found), rel=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_numbers_of_one_sign_and_zeros_beside_them_are_of_that_size_too(size, sign):
    matrix = sign * size * noise(40, 50, 4).abs()
    matrix[0, 0] = 0.0
    found = approximate(matrix, rank=6)
    assert error_of(matrix, found) <= BOUND * least_error(matrix, 6)
    assert found.relative_error == pytest.approx(error_of(matrix, found), rel=1e-6)


@pytest.mark.parametrize(("name", "rank"), [("flat", 8), ("tall", 2), ("low rank and noise", 8), ("dora", 4)])
def test_a_small_rank_is_found_without_all_eigenvectors(name, rank, monkeypatch):
    matrix = MATRICES[name](0)
    monkeypatch.delattr(low_rank, "_by_eigenvectors")
    assert error_of(matrix, approximate(matrix, rank=rank)) <= BOUND * least_error(matrix, rank)


@pytest.mark.parametrize("rank", [8, 200])
def test_the_factors_share_the_singular_values_evenly(rank):
    found = approximate(MATRICES["dora"](2), rank=rank)
    values = torch.linalg.svdvals(found.up @ found.down)[:rank]
    torch.testing.assert_close(found.up.norm(dim=0), values.sqrt())
    torch.testing.assert_close(found.down.norm(dim=1), values.sqrt())


def test_a_zero_matrix_needs_nothing():
    found = approximate(torch.zeros(4, 6), rank=3)
    assert (found.rank, found.relative_error) == (1, 0.0)
    assert not (found.up @ found.down).any()


@pytest.mark.parametrize("choice", [{"rank": 16}, {"max_error": 1e-5}], ids=str)
def test_a_rank_beyond_the_matrix_gives_what_there_is(choice):
    matrix = spectrum(torch.ones(3), 200, 210, 0).float()
    found = approximate(matrix, **choice)
    assert found.rank == 3
    assert found.relative_error < 1e-5


@pytest.mark.parametrize("choice", [{"rank": 16}, {"rank": 60}, {"max_error": 1e-12}], ids=str)
def test_values_below_the_rounding_of_float32_beside_the_largest_are_none(choice):
    matrix = spectrum(torch.tensor([1.0, 1e-6, 1e-9]), 200, 210, 0)
    assert approximate(matrix, **choice).rank == 2


def test_gives_the_same_factors_each_time():
    matrix = MATRICES["flat"](1)
    for rank in (5, 100):
        first, second = approximate(matrix, rank=rank), approximate(matrix, rank=rank)
        assert torch.equal(first.up, second.up)
        assert torch.equal(first.down, second.down)
