import pytest
import torch

from lora_inspect.lowrank import approximate


def spectrum(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    count = len(values)
    left = torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, count, generator=generator, dtype=torch.float64)).Q
    return (left * values) @ right.T


MATRICES = {
    "flat": torch.randn(300, 420, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "falling slowly": spectrum(0.98 ** torch.arange(256.0, dtype=torch.float64), 256, 320),
    "falling as 1/n": spectrum(1 / torch.arange(1.0, 257.0, dtype=torch.float64), 320, 256),
    "low rank and noise": spectrum(torch.ones(8, dtype=torch.float64), 300, 300)
    + 1e-3 * torch.randn(300, 300, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
    "two plateaus": spectrum(torch.tensor([1.0] * 40 + [0.5] * 160, dtype=torch.float64), 240, 260),
    "wide": torch.randn(3, 500, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
}


def least_error(matrix: torch.Tensor, rank: int) -> float:
    """Eckart-Young, by a dense decomposition."""
    squares = torch.linalg.svdvals(matrix).square()
    return float((squares[rank:].sum() / squares.sum()).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 8, 32, 100])
@pytest.mark.parametrize("name", MATRICES)
def test_is_within_a_hundredth_of_the_best(name, rank, dtype):
    matrix = MATRICES[name].to(dtype)
    found = approximate(matrix, rank=rank)
    assert found.rank <= rank
    assert found.up.shape == (matrix.shape[0], found.rank)
    assert found.down.shape == (found.rank, matrix.shape[1])
    error = (matrix - found.up @ found.down).double().norm() / matrix.double().norm()
    assert found.relative_error == pytest.approx(float(error), rel=1e-3, abs=1e-9)
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(error) <= 1.01 * least_error(MATRICES[name], rank) + rounding


@pytest.mark.parametrize("bound", [0.9, 0.3, 0.05])
@pytest.mark.parametrize("name", MATRICES)
def test_finds_nearly_the_least_rank_for_an_error(name, bound):
    matrix = MATRICES[name]
    found = approximate(matrix, max_error=bound)
    assert found.relative_error <= bound * (1 + 1e-9)
    least = next(rank for rank in range(1, min(matrix.shape) + 1) if least_error(matrix, rank) <= bound)
    assert least <= found.rank <= least + max(1, least // 50)


def test_a_zero_matrix_needs_nothing():
    found = approximate(torch.zeros(4, 6), rank=3)
    assert (found.rank, found.relative_error) == (1, 0.0)
    assert not (found.up @ found.down).any()


def test_a_rank_beyond_the_matrix_gives_what_there_is():
    matrix = spectrum(torch.ones(3, dtype=torch.float64), 20, 30).float()
    found = approximate(matrix, rank=16)
    assert found.rank == 3
    assert found.relative_error < 1e-5
    assert torch.isfinite(found.up).all()
    assert torch.isfinite(found.down).all()


def test_gives_the_same_factors_each_time():
    matrix = MATRICES["flat"]
    first, second = approximate(matrix, rank=5), approximate(matrix, rank=5)
    assert torch.equal(first.up, second.up)
    assert torch.equal(first.down, second.down)
